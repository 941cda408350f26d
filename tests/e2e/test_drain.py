"""How engines and routers end: what a client sees while the pods of a deployment are replaced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from serving_processes import DEADLINE_S, Server, answer_of, engine, router, until_answers

pytestmark = pytest.mark.slow

PATIENT = ("--replica-wait-s", str(DEADLINE_S))
"""Longer than an engine takes to start."""
ENDLESS: dict[str, Any] = {"model": "fake", "prompt": "hi", "extra_body": {"ignore_eos": True}}


def client_of(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


async def read_to_end(stream: Any) -> str | None:
    """Return the finish reason of a stream."""
    reason = None
    async for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
    return reason


class Load:
    """Clients that ask one question after another, half of them streaming."""

    def __init__(self, server: Server) -> None:
        self.num_answered = 0
        self.failures: list[str] = []
        self._server = server
        self._is_over = False

    @asynccontextmanager
    async def running(self, num_clients: int = 16) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for number in range(num_clients):
                tasks.create_task(self._ask_on(number))
            try:
                yield
            finally:
                self._is_over = True

    async def until_answered(self, num_more: int) -> None:
        """Wait until so many more have been answered, or one has failed."""
        wanted = self.num_answered + num_more
        async with asyncio.timeout(DEADLINE_S):
            while self.num_answered < wanted and not self.failures:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _ask_on(self, number: int) -> None:
        async with client_of(self._server) as client:
            while not self._is_over:
                try:
                    await self._ask(client, streams=bool(number % 2))
                except openai.OpenAIError as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    async def _ask(self, client: openai.AsyncOpenAI, *, streams: bool) -> None:
        if streams:
            stream = await client.completions.create(**ENDLESS, max_tokens=40, stream=True)
            assert await read_to_end(stream) == "length"
        else:
            answer = await client.completions.create(**ENDLESS, max_tokens=40)
            assert answer.choices[0].finish_reason == "length"
        self.num_answered += 1


async def test_engines_that_are_replaced_one_by_one_fail_no_request(tmp_path: Path) -> None:
    sockets = [tmp_path / "one.sock", tmp_path / "two.sock"]
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine(socket)) for socket in sockets]
        addresses = (item.address for item in engines)
        front = await stack.enter_async_context(router(*addresses, flags=PATIENT))
        await until_answers(f"{front.url}/ready", 200)
        load = Load(front)

        async with load.running():
            for old, socket in zip(engines, sockets, strict=True):
                await load.until_answered(32)
                old.terminate()
                assert await old.status() == 0
                await stack.enter_async_context(engine(socket))
            await load.until_answered(32)

    assert load.failures == []


async def test_the_only_engine_may_be_replaced_while_requests_wait(tmp_path: Path) -> None:
    socket = tmp_path / "one.sock"
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(engine(socket))
        front = await stack.enter_async_context(router(old.address, flags=PATIENT))
        await until_answers(f"{front.url}/ready", 200)
        load = Load(front)

        async with load.running(num_clients=4):
            await load.until_answered(4)
            old.terminate()
            assert await old.status() == 0
            assert await answer_of(f"{front.url}/readyz") == 200
            await until_answers(f"{front.url}/ready", 503)
            await stack.enter_async_context(engine(socket))
            await load.until_answered(8)

    assert load.failures == []


async def test_an_engine_ends_as_soon_as_its_requests_have(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "one.sock", "--shutdown-timeout", str(2 * DEADLINE_S)) as only,
        router(only.address) as front,
        client_of(front) as client,
    ):
        await until_answers(f"{front.url}/ready", 200)
        stream = await client.completions.create(**ENDLESS, max_tokens=200, stream=True)
        await anext(stream)

        only.terminate()

        assert await read_to_end(stream) == "length"
        assert await only.status() == 0


async def test_a_router_that_is_told_to_stop_first_sends_its_clients_elsewhere(
    tmp_path: Path,
) -> None:
    flags = ("--shutdown-delay", "5", "--shutdown-timeout", "100")
    async with (
        engine(tmp_path / "one.sock") as only,
        router(only.address, flags=flags) as front,
        client_of(front) as client,
        aiohttp.ClientSession() as http,
    ):
        await until_answers(f"{front.url}/ready", 200)
        async with http.get(f"{front.url}/v1/models") as response:
            assert "connection" not in response.headers
        stream = await client.completions.create(**ENDLESS, max_tokens=1400, stream=True)
        await anext(stream)

        front.terminate()
        await until_answers(f"{front.url}/readyz", 503)

        assert await answer_of(f"{front.url}/health") == 200
        body = {"model": "fake", "prompt": "hi", "max_tokens": 4}
        async with http.post(f"{front.url}/v1/completions", json=body) as response:
            assert response.status == 200
            assert response.headers["connection"] == "close"
        await until_answers(f"{front.url}/health", 0)
        assert await read_to_end(stream) == "length"
        assert await front.status() == 0


async def test_routers_that_are_replaced_behind_a_load_balancer_fail_no_request(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        only = await stack.enter_async_context(engine(tmp_path / "one.sock"))
        flags = ("--shutdown-delay", "5")
        fronts = [
            await stack.enter_async_context(router(only.address, flags=flags)) for _ in range(2)
        ]
        for front in fronts:
            await until_answers(f"{front.url}/ready", 200)
        balancer = await stack.enter_async_context(balancing(fronts))
        load = Load(balancer)

        async with load.running():
            await load.until_answered(16)
            fronts[0].terminate()
            assert await fronts[0].status() == 0
            await load.until_answered(16)

    assert load.failures == []


@asynccontextmanager
async def balancing(fronts: list[Server]) -> AsyncIterator[Server]:
    """A TCP load balancer like a Service: new connections go where readiness says yes."""
    ready = list(fronts)

    async def watch() -> None:
        while True:
            known = [item for item in fronts if await answer_of(f"{item.url}/readyz") == 200]
            ready[:] = known or ready
            await asyncio.sleep(0.1)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen = ready[hash(writer.get_extra_info("peername")) % len(ready)]
        host, port = chosen.address.split(":")
        upstream = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            pipe(reader, upstream[1]), pipe(upstream[0], writer), return_exceptions=True
        )

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    watcher = asyncio.create_task(watch())
    host, port = server.sockets[0].getsockname()
    try:
        yield Server(fronts[0].process, f"{host}:{port}")
    finally:
        watcher.cancel()
        server.close()


async def test_a_router_without_replicas_takes_traffic_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    async with (
        router(f"unix:{tmp_path}/nobody.sock", flags=("--replica-wait-s", "0.2")) as front,
        client_of(front) as client,
    ):
        assert await answer_of(f"{front.url}/readyz") == 200
        assert await answer_of(f"{front.url}/ready") == 503
        with pytest.raises(openai.InternalServerError, match="no replica") as caught:
            await client.completions.create(**ENDLESS)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
