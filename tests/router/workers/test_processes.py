"""`quire router --workers`: real processes on real sockets, killed and drained as in a cluster."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire_process import run_quire
from serve_process import free_port
from serving_processes import ENVIRONMENT, Server, answer_of, ending, engine, until_answers

NUM_WORKERS = 3
NUM_TOKENS = 8
PATIENCE_S = 60.0

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@asynccontextmanager
async def routing(*replicas: str, flags: tuple[str, ...] = ()) -> AsyncIterator[Server]:
    """A router of three workers, all of which serve when it is yielded; at the end none is left."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire.cli", "router", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", str(NUM_WORKERS), "--replicas", *replicas, *flags),
        stdout=DEVNULL,
        stderr=STDOUT,
        env=ENVIRONMENT,
        start_new_session=True,  # a terminal's Ctrl-C is for this group, and not for the tests
    )
    server = Server(process, f"127.0.0.1:{port}")
    async with ending(process):
        await until_answers(f"{server.url}/ready", 200)
        await until_shown(server, "quire_router_workers", NUM_WORKERS)
        num_connections = len(replicas) * NUM_WORKERS
        await until_shown(server, "quire_router_replica_connections_total", num_connections)
        yield server


def workers_of(server: Server) -> list[int]:
    """Return the processes that the router has started."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_ended(pids: list[int]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(map(is_running, pids)):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)


@asynccontextmanager
async def clients() -> AsyncIterator[aiohttp.ClientSession]:
    """A connection of its own for each request: each reaches whichever worker is free."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def get(server: Server, path: str) -> str:
    async with clients() as session, session.get(server.url + path) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def samples(server: Server) -> Samples:
    families = text_string_to_metric_families(await get(server, "/metrics"))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(
        value for (key, having), value in found.items() if key == name and wanted <= set(having)
    )


async def until_shown(server: Server, name: str, value: float, **labels: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while total(await samples(server), name, **labels) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def complete(server: Server, session: aiohttp.ClientSession, prompt: str) -> int:
    """Return the status of a completion; 0 when its connection broke."""
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    try:
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


async def stream(server: Server, num_tokens: int, started: asyncio.Event) -> str:
    """Stream a completion to its end and return how it ended."""
    body = {"prompt": "hi", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    last: dict[str, Any] = {}
    url = f"{server.url}/v1/completions"
    async with clients() as session, session.post(url, json=body) as response:
        async for line in response.content:
            started.set()
            if line.startswith(b"data: {"):
                last = json.loads(line.removeprefix(b"data: "))
    return last["error"]["code"] if "error" in last else str(last["choices"][0]["finish_reason"])


async def streams(server: Server, num: int, num_tokens: int) -> list[asyncio.Task[str]]:
    """Start so many streams, and return once all have begun."""
    started = [asyncio.Event() for _ in range(num)]
    tasks = [asyncio.create_task(stream(server, num_tokens, event)) for event in started]
    await asyncio.gather(*(event.wait() for event in started))
    return tasks


async def test_metrics_are_exact_whichever_worker_answers(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "a") as one,
        engine(tmp_path / "b") as two,
        routing(one.address, two.address) as server,
        clients() as session,
    ):
        sent = [complete(server, session, f"prompt {number}") for number in range(60)]
        assert set(await asyncio.gather(*sent)) == {200}
        await until_shown(server, "quire_router_requests_in_flight", 0)

        for _ in range(3 * NUM_WORKERS):
            found = await samples(server)
            route = {"route": "/v1/completions"}
            assert total(found, "quire_router_requests_total", status="200", **route) == 60
            duration = "quire_router_request_duration_seconds"
            assert total(found, f"{duration}_count", **route) == 60
            assert total(found, f"{duration}_bucket", le="+Inf", **route) == 60
            assert total(found, "quire_router_completion_tokens_total") == 60 * NUM_TOKENS
            assert total(found, "quire_router_decision_seconds_count") == 60
            assert total(found, "quire_router_replica_requests_total") == 60
            assert total(found, "quire_router_replica_in_flight") == 0
            assert total(found, "quire_router_replica_up") == 2
            assert total(found, "quire_router_replica_connections_total") == 2 * NUM_WORKERS
            assert total(found, "quire_router_info") == 1
            assert total(found, "quire_router_workers") == NUM_WORKERS
            assert not any(name.endswith("_created") for name, _ in found)


async def test_every_worker_takes_requests_and_tells_of_all_of_them(tmp_path: Path) -> None:
    async with engine(tmp_path / "a") as one, routing(one.address) as server, clients() as session:
        await asyncio.gather(*(complete(server, session, f"{number}") for number in range(40)))

        async def shown() -> list[dict[str, Any]]:
            requests: list[dict[str, Any]] = json.loads(await get(server, "/v1/replicas"))[
                "requests"
            ]
            return requests

        async with asyncio.timeout(PATIENCE_S):
            for number in itertools.count(1):
                outcomes = [request["outcome"] for request in await shown()]
                if outcomes == ["done"] * 40 and number > NUM_WORKERS:
                    break
        assert len({request["number"] for request in await shown()}) == 40
        async with asyncio.timeout(PATIENCE_S):
            while len({request["number"] % NUM_WORKERS for request in await shown()}) < NUM_WORKERS:
                await asyncio.gather(*(complete(server, session, "more") for _ in range(40)))


async def test_a_worker_that_is_killed_is_replaced_and_no_count_drops(tmp_path: Path) -> None:
    async with engine(tmp_path / "a") as one, routing(one.address) as server, clients() as session:
        tasks = [
            asyncio.create_task(complete(server, session, f"{number}")) for number in range(30)
        ]
        await asyncio.sleep(0.05)
        before = await samples(server)
        victim = workers_of(server)[0]

        os.kill(victim, signal.SIGKILL)
        statuses = await asyncio.gather(*tasks)
        after_kill = [await complete(server, session, f"again {number}") for number in range(20)]

        assert set(statuses) <= {200, 0}
        assert set(after_kill) == {200}
        last = before
        async with asyncio.timeout(PATIENCE_S):
            while last["quire_router_workers", ()] < NUM_WORKERS or victim in workers_of(server):
                found = await samples(server)
                assert_none_drops(last, found)
                last = found
        await until_shown(server, "quire_router_requests_in_flight", 0)
        last = await samples(server)
        assert_none_drops(before, last)
        assert total(last, "quire_router_worker_restarts_total") == 1
        assert total(last, "quire_router_replica_in_flight") == 0
        assert total(last, "quire_router_replica_queued_tokens") == 0
        answered = total(last, "quire_router_requests_total", route="/v1/completions")
        # The kill may come between an answer's last byte and its being counted.
        assert abs(answered - statuses.count(200) - len(after_kill)) <= 1


def assert_none_drops(before: Samples, after: Samples) -> None:
    suffixes = ("_total", "_count", "_sum", "_bucket")
    counted = {key: value for key, value in before.items() if key[0].endswith(suffixes)}
    assert {key: after.get(key, -1.0) for key, value in counted.items()} == {
        key: max(value, after.get(key, -1.0)) for key, value in counted.items()
    }


async def test_a_worker_that_stands_still_takes_no_new_requests(tmp_path: Path) -> None:
    async with engine(tmp_path / "a") as one, routing(one.address) as server, clients() as session:
        stopped = workers_of(server)[0]
        os.kill(stopped, signal.SIGSTOP)

        statuses = [await complete(server, session, f"{number}") for number in range(20)]

        assert set(statuses) == {200}
        with contextlib.suppress(ProcessLookupError):  # killed, as one that hangs
            os.kill(stopped, signal.SIGCONT)


@pytest.mark.parametrize("to_all", [False, True], ids=["to-the-parent", "to-the-whole-group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_streams_of_all_workers_end_well_in_a_shutdown(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    async with engine(tmp_path / "a") as one, routing(one.address) as server:
        begun = await streams(server, 6, 150)
        pids = workers_of(server)

        if to_all:
            os.killpg(server.process.pid, number)
        else:
            server.process.send_signal(number)

        assert set(await asyncio.gather(*begun)) == {"length"}
        assert await server.status() == 0
        await until_ended(pids)


async def test_while_it_waits_for_load_balancers_every_worker_says_no(tmp_path: Path) -> None:
    flags = ("--shutdown-delay", str(2 * PATIENCE_S))
    async with engine(tmp_path / "a") as one, routing(one.address, flags=flags) as server:
        server.terminate()

        await until_answers(f"{server.url}/readyz", 503)
        await asyncio.sleep(1.0)  # the others have been told too
        async with clients() as session:
            for _ in range(2 * NUM_WORKERS):
                async with session.get(f"{server.url}/readyz") as response:
                    assert response.status == 503
                async with session.get(f"{server.url}/v1/models") as response:
                    assert response.status == 200
        server.terminate()
        assert await server.status() == 0


@pytest.mark.parametrize("twice", [False, True], ids=["timeout", "twice"])
async def test_endless_streams_end_with_an_error_in_a_shutdown(tmp_path: Path, twice: bool) -> None:
    flags = ("--shutdown-timeout", str(2 * PATIENCE_S) if twice else "0.5")
    async with engine(tmp_path / "a") as one, routing(one.address, flags=flags) as server:
        begun = await streams(server, 4, 5000)

        server.terminate()
        if twice:
            while await answer_of(f"{server.url}/readyz") == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            server.terminate()

        assert set(await asyncio.gather(*begun)) == {"shutting_down"}
        assert await server.status() == 0


async def test_nothing_is_left_of_a_router_whose_parent_is_killed(tmp_path: Path) -> None:
    async with engine(tmp_path / "a") as one, routing(one.address) as server:
        pids = workers_of(server)
        assert len(pids) == NUM_WORKERS

        server.process.kill()

        await server.status()
        await until_ended(pids)


@pytest.mark.parametrize("value", ["0", "-1", "65", "100000"])
async def test_a_number_of_workers_out_of_range_is_refused(value: str) -> None:
    status, _, errors = await run_quire("router", "--replicas", "localhost:1", "--workers", value)

    assert status == 2
    assert f"workers must be in [1, 64], not {value}" in errors


async def test_what_is_wrong_is_told_before_there_are_workers() -> None:
    status, _, errors = await run_quire(
        *("router", "--workers", "2", "--port", str(free_port())),
        *("--replicas", "kubernetes:///nowhere:grpc"),
    )

    assert status == 2
    assert errors.count("error:") == 1
