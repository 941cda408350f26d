"""What stands in the logs of real processes, and what never does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from engine_client import generate, stub_of
from serving_processes import Server, router, tcp_engine, until_answers

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SECRET = "canary-in-a-coal-mine"
KEY = "sk-canary-key"
ENGINE = ("--log-level", "debug", "--core-process")
ROUTER = ("--log-level", "debug", "--access-log", "--api-key", KEY)


@dataclass(kw_only=True)
class Logged:
    """A router and an engine, and their logs."""

    router: Server
    engine: Server
    http: aiohttp.ClientSession
    folder: Path

    async def post(self, path: str, body: Any, **headers: str) -> int:
        sent = {"authorization": f"Bearer {KEY}", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.router.url + path, data=data, headers=sent) as response:
            await response.read()
            return response.status

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def entries(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log(name).splitlines()]

    async def end(self) -> None:
        self.router.terminate()
        await self.router.status()
        self.engine.terminate()
        await self.engine.status()


@asynccontextmanager
async def logged(
    folder: Path, *flags: str, engine: tuple[str, ...] = ENGINE, gateway: tuple[str, ...] = ROUTER
) -> AsyncIterator[Logged]:
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(
            tcp_engine(*engine, *flags, log=folder / "engine.log")
        )
        entrance = await stack.enter_async_context(
            router(replica.address, flags=(*gateway, *flags), log=folder / "router.log")
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await until_answers(f"{entrance.url}/ready", 200)
        yield Logged(router=entrance, engine=replica, http=http, folder=folder)


@pytest.mark.parametrize("format_", ["json", "text"])
async def test_no_prompt_and_no_key_is_in_any_log_at_any_level(
    tmp_path: Path, format_: str
) -> None:
    async with logged(tmp_path, "--log-format", format_) as running:
        statuses = [await running.post(path, body) for path, body in requests()]
        statuses.append(await running.post(CHAT, {}, authorization=f"Bearer {SECRET}"))
        statuses.append(await running.post(f"/v1/models?api_key={KEY}&q={SECRET}", {}))
        statuses.append(await running.post(f"/{SECRET}/{KEY}", {}))
        await call_the_engine(running.engine.address)
        await running.end()
        logs = running.log("router") + running.log("engine")

    assert statuses == [200, 200, 200, 200, 400, 400, 400, 404, 400, 401, 405, 404]
    assert "level=debug" in logs or "DEBUG" in logs or '"debug"' in logs
    assert SECRET not in logs
    assert KEY not in logs


def requests() -> list[tuple[str, Any]]:
    """Return what works, and what fails in every part: each with the secret wherever it fits."""
    said = [{"role": "user", "content": SECRET, "name": SECRET}]
    return [
        (CHAT, {"messages": said, "max_tokens": 4, "user": SECRET, "request_id": SECRET}),
        (CHAT, {"messages": said, "max_tokens": 4, "stream": True, "stop": [SECRET]}),
        (COMPLETIONS, {"prompt": SECRET, "max_tokens": 4, "cache_salt": SECRET, "echo": True}),
        ("/tokenize", {"prompt": SECRET}),
        (CHAT, f'{{"messages": {SECRET}'.encode()),
        (CHAT, {"messages": SECRET, "temperature": SECRET}),
        (COMPLETIONS, {"prompt": SECRET * 2000}),
        (CHAT, {"messages": said, "model": SECRET}),
        (COMPLETIONS, {"prompt": "hi", "bad_words": [f"{SECRET}\ud83d\ude00"], "top_p": 7}),
    ]


async def call_the_engine(address: str) -> None:
    """Ask it as tools do: with text, and wrongly."""
    async with stub_of(address) as stub:
        [_ async for _ in stub.Generate(generate(SECRET))]
        for wrong in (
            generate(SECRET * 2000, request_id=f"{SECRET}\n{SECRET}"),
            generate(SECRET, top_p=7.0),
            generate(SECRET, stop=[SECRET], min_tokens=9, max_tokens=4),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                [_ async for _ in stub.Generate(wrong)]


async def test_a_failure_is_in_both_logs_under_the_clients_id(tmp_path: Path) -> None:
    parent = f"00-{'a1' * 16}-{'b2' * 8}-01"
    async with logged(tmp_path, "--log-format", "json") as running:
        body = {"prompt": "hi", "max_tokens": 4000, "stream": True}
        headers = {
            "authorization": f"Bearer {KEY}",
            "x-request-id": "find-me",
            "traceparent": parent,
        }
        async with running.http.post(
            running.router.url + COMPLETIONS, json=body, headers=headers
        ) as response:
            await response.content.readuntil(b"\n\n")
            os.kill(core_of(running.engine), signal.SIGKILL)
            answer = await response.text()
        assert await running.engine.status() == 1
        running.router.terminate()
        await running.router.status()

    assert response.headers["x-request-id"] == "find-me"
    assert "replica_lost" in answer
    ours = {
        name: [entry for entry in running.entries(name) if entry.get("request_id") == "find-me"]
        for name in ("router", "engine")
    }
    assert {entry["trace_id"] for entries in ours.values() for entry in entries} == {"a1" * 16}
    [lost] = [entry for entry in ours["engine"] if entry["level"] == "warning"]
    assert lost["message"].startswith("request failed reason=the core process was killed")
    attempt, request, access = ours["router"]
    assert attempt["message"].startswith(f"attempt failed replica={running.engine.address} reason=")
    assert request["message"] == (
        f"request failed route={COMPLETIONS} status=503 code=replica_lost"
    )
    assert access["message"].startswith(f"access method=POST route={COMPLETIONS} status=200")
    assert {attempt["level"], request["level"]} == {"warning"}


def core_of(engine: Server) -> int:
    """Return the pid of the core process of an engine."""
    pid = engine.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [core] = [
        int(child)
        for child in children
        if b"quire_engine.core.process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return core


async def test_every_line_is_json_with_the_same_fields(tmp_path: Path) -> None:
    async with logged(tmp_path, "--log-format", "json") as running:
        await running.post(COMPLETIONS, {"prompt": "hi", "max_tokens": 4})
        await running.end()
        entries = running.entries("router") + running.entries("engine")

    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in entries)
    assert all(entry["time"].endswith("Z") for entry in entries)
    ended = [entry for entry in entries if entry["message"].startswith("request ended")]
    access = [entry for entry in entries if entry["logger"] == "quire_router.access"]
    assert [entry["request_id"] for entry in ended] == [
        entry["request_id"] for entry in access if COMPLETIONS in entry["message"]
    ]


async def test_requests_are_logged_only_when_asked_for_and_whatever_the_level(
    tmp_path: Path,
) -> None:
    quiet, asked = tmp_path / "quiet", tmp_path / "asked"
    quiet.mkdir()
    asked.mkdir()
    async with logged(quiet, engine=(), gateway=()) as silent:
        await silent.post(COMPLETIONS, {"prompt": "hi", "max_tokens": 4})
        await silent.end()
    async with logged(asked, engine=(), gateway=("--access-log", "--log-level=error")) as running:
        body = {"prompt": "hi", "max_tokens": 4}
        await asyncio.gather(
            running.post(f"{COMPLETIONS}?a=b", body, **{"x-request-id": "find-me"}),
            until_answers(f"{running.router.url}/health", 200),
        )
        await running.end()

    assert "access" not in silent.log("router") + silent.log("engine")
    [line] = [text for text in running.log("router").splitlines() if "completions" in text]
    assert " INFO quire_router.access access method=POST route=/v1/completions status=200" in line
    assert "duration_ms=" in line
    assert line.endswith("client=127.0.0.1 request_id=find-me")
    assert "/health" not in running.log("router")
