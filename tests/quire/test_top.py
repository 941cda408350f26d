"""`quire top` as a user runs it: a real router, fake engines, and a terminal."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from openai_server import OpenAIServer
from quire_process import run_quire
from serve_process import free_port
from serving_processes import DEADLINE_S, Server, engine, router, until_answers
from terminal import ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR, Terminal, on_quire_terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sesame"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A router and its two engines."""

    router: Server
    first: Server
    second: Server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    folder = tmp_path_factory.mktemp("top")
    async with (
        engine(folder / "one.sock") as first,
        engine(folder / "two.sock") as second,
        router(first.address, second.address) as front,
    ):
        await until_shown(front.url, num_ready=2)
        await ask(front.url)
        yield Deployment(router=front, first=first, second=second)


async def until_shown(url: str, *, num_ready: int) -> None:
    """Wait until so many replicas are ready."""
    states: list[str] = []
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        while states.count("ready") != num_ready:
            async with session.get(f"{url}/v1/replicas") as response:
                states = [replica["state"] for replica in (await response.json())["replicas"]]


async def ask(url: str) -> None:
    """Have one request answered, once that is possible."""
    await until_answers(f"{url}/ready", 200)
    body = {"model": "fake", "prompt": "Hello", "max_tokens": 3}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()


async def test_replicas_and_requests_are_shown_until_q(deployment: Deployment) -> None:
    with on_quire_terminal("top", deployment.router.url) as terminal:
        before = terminal.settings

        await terminal.until_shown("2 of 2 replicas ready")
        await ask(deployment.router.url)
        await terminal.until_shown("as good as others: its turn")
        terminal.press("q")

        assert await terminal.ended() == 0
        assert_left_clean(terminal, before)


async def test_ctrl_c_leaves_the_terminal_as_it_was(deployment: Deployment) -> None:
    with on_quire_terminal("top", deployment.router.url) as terminal:
        before = terminal.settings

        await terminal.until_shown("replicas ready")
        terminal.press("\x03")

        assert await terminal.ended() == 0
        assert_left_clean(terminal, before)


async def test_another_size_is_drawn_at_once(deployment: Deployment) -> None:
    with on_quire_terminal("top", deployment.router.url, columns=140) as terminal:
        await terminal.until_shown("Queued tokens")

        terminal.resize(60, 12)
        await terminal.until_shown("Queued tokens", is_shown=False)

        await terminal.until_shown("q quits")
        assert max(map(len, terminal.lines)) <= 60
        assert len(terminal.lines) == 12
        assert "one.sock" in terminal.text


async def test_it_survives_its_routers_restart(tmp_path: Path) -> None:
    port = free_port()
    async with engine(tmp_path / "e.sock") as replica:
        with ExitStack() as stack:
            async with router(replica.address, port=port) as front:
                await ask(front.url)
                terminal = stack.enter_context(on_quire_terminal("top", front.url))
                await terminal.until_shown("the only one that could take it")
                front.terminate()
                assert await front.status() == 0

            await terminal.until_shown("connection lost, retrying in")
            assert "1 of 1 replica ready" in terminal.text

            async with router(replica.address, port=port):
                await terminal.until_shown("no requests yet")
                assert "connection lost" not in terminal.text
                await terminal.until_shown("1 of 1 replica ready")


async def test_a_router_that_wants_a_key_after_its_restart_is_told_of_in_one_line(
    tmp_path: Path,
) -> None:
    port = free_port()
    async with engine(tmp_path / "e.sock") as replica:
        with ExitStack() as stack:
            async with router(replica.address, port=port) as front:
                terminal = stack.enter_context(on_quire_terminal("top", front.url))
                await terminal.until_shown("1 of 1 replica ready")

            async with router(replica.address, port=port, flags=("--api-key", KEY)):
                assert await terminal.ended() == 1

            last = terminal.written.rpartition(LEAVE_SCREEN)[2]
            assert "quire top: error: 401: an API key is required" in last


async def test_once_prints_a_table_and_nothing_else(deployment: Deployment) -> None:
    status, out, err = await run_quire("top", deployment.router.url, "--once")

    assert (status, err) == (0, "")
    assert "\x1b" not in out
    header, totals, empty, heads, *rows = out.split("\n")
    assert header == f"{deployment.router.url} · fake"
    assert totals.startswith("2 of 2 replicas ready")
    assert (empty, heads.split()[0]) == ("", "Replica")
    assert [row.split()[:2] for row in rows[:2]] == [
        [deployment.first.address, "ready"],
        [deployment.second.address, "ready"],
    ]


async def test_without_a_terminal_it_prints_once(deployment: Deployment) -> None:
    status, out, err = await run_quire("top", deployment.router.url)

    assert (status, err) == (0, "")
    assert out.startswith(f"{deployment.router.url} · fake\n2 of 2 replicas ready")


async def test_json_is_what_the_router_answers(deployment: Deployment) -> None:
    url = f"{deployment.router.url}/v1/replicas"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        told: dict[str, Any] = await response.json()

    status, out, err = await run_quire("top", deployment.router.url, "--once", "--json")

    printed = json.loads(out)
    assert (status, err) == (0, "")
    assert printed.keys() == told.keys()
    assert [each.keys() for each in printed["replicas"]] == [r.keys() for r in told["replicas"]]
    assert printed["requests"] == told["requests"]


async def test_a_key_is_taken_from_the_flag_or_the_environment(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with router(deployment.first.address, flags=("--api-key", KEY)) as front:
        wrong = await run_quire("top", front.url, "--once", "--api-key", "guess")
        none = await run_quire("top", front.url, "--once")
        given = await run_quire("top", front.url, "--once", "--api-key", KEY)
        monkeypatch.setenv("QUIRE_API_KEY", KEY)
        inherited = await run_quire("top", front.url, "--once")

    assert [status for status, _, _ in (wrong, none, given, inherited)] == [1, 1, 0, 0]
    assert wrong[2] == (
        "quire top: error: 401: the API key is not valid; give it with --api-key or QUIRE_API_KEY\n"
    )
    assert none[2].startswith("quire top: error: 401: an API key is required")


async def test_nobody_there_is_told_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    status, out, err = await run_quire("top", url)

    assert (status, out) == (1, "")
    assert err.startswith(f"quire top: error: nothing listens at {url}")
    assert err.count("\n") == 1


async def test_a_name_that_is_no_host_and_a_server_without_tls_are_told_apart(
    deployment: Deployment,
) -> None:
    https = deployment.router.url.replace("http:", "https:")

    nowhere = await run_quire("top", "http://no-such-host.invalid")
    plain = await run_quire("top", https)

    assert (nowhere[0], plain[0]) == (1, 1)
    assert nowhere[2].endswith("there is no host no-such-host.invalid\n")
    assert plain[2].startswith(f"quire top: error: {https} does not speak TLS as it should")


async def test_another_server_is_told_from_a_router() -> None:
    async with OpenAIServer().run() as server:
        status, out, err = await run_quire("top", server.url)

    assert (status, out) == (1, "")
    assert err == f"quire top: error: {server.url} is no Quire router: it has no /v1/replicas\n"


@pytest.mark.parametrize(
    "arguments", [("localhost:8000",), ("--json",), ("http://a:b",), ("a", "b")]
)
async def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    status, out, err = await run_quire("top", *arguments)

    assert (status, out) == (2, "")
    assert err.startswith("quire top: error: ")
    assert err.count("\n") == 1


def assert_left_clean(terminal: Terminal, before: list[Any]) -> None:
    assert terminal.settings == before
    shown, _, after = terminal.written.rpartition(LEAVE_SCREEN)
    assert ENTER_SCREEN in shown
    assert SHOW_CURSOR in shown[-20:] + after
    assert after.replace(SHOW_CURSOR, "") == ""
