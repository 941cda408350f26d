"""Every answer names its request, whatever becomes of it."""

import asyncio
from typing import Any

import aiohttp
import pytest

from http_support import DEADLINE_S, ScriptedDispatcher, Served, serve
from quire_router.errors import NoReplicaError, ReplicaLostError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
ID = {"x-request-id": "find-me"}
KEY = {"authorization": "Bearer key"}


async def id_of(
    served: Served, method: str, path: str, headers: dict[str, str] | None = None, **body: Any
) -> tuple[int, str]:
    headers = {**ID, **KEY} if headers is None else headers
    url = served.url + path
    async with served.http.request(method, url, headers=headers, **body) as response:
        await response.read()
        assert len(response.headers.getall("x-request-id")) == 1
        return response.status, response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/", {}, 200),
        ("GET", "/v1/models", {}, 200),
        ("POST", CHAT, {"json": {"messages": USER}}, 200),
        ("POST", COMPLETIONS, {"json": {"prompt": "hi", "stream": True}}, 200),
        ("POST", CHAT, {"data": b"{"}, 400),
        ("POST", CHAT, {"json": {"messages": USER, "model": "no such"}}, 404),
        ("GET", "/no/such/path", {}, 404),
        ("GET", CHAT, {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("POST", CHAT, {"data": b"x" * 2000}, 413),
        ("POST", "/v1/embeddings", {"json": {}}, 501),
    ],
)
async def test_an_id_comes_back_with_every_status(
    method: str, path: str, body: dict[str, Any], status: int
) -> None:
    async with serve(ScriptedDispatcher(), api_keys=("key",), max_body_bytes=1000) as served:
        assert await id_of(served, method, path, **body) == (status, "find-me")


async def test_an_id_comes_back_without_a_key_and_from_preflights() -> None:
    async with serve(
        ScriptedDispatcher(), api_keys=("key",), allowed_origins=("https://app",)
    ) as served:
        asks = {**ID, "origin": "https://app", "access-control-request-method": "POST"}

        assert await id_of(served, "POST", CHAT, headers=ID) == (401, "find-me")
        assert await id_of(served, "OPTIONS", CHAT, headers=asks) == (200, "find-me")
        status, made = await id_of(served, "OPTIONS", CHAT, headers={**asks, "x-request-id": ""})
        assert (status, len(made)) == (200, 32)
        answer = {**ID, **KEY, "origin": "https://app"}
        assert await id_of(served, "GET", "/v1/models", headers=answer) == (200, "find-me")


@pytest.mark.parametrize(
    ("error", "status"),
    [(NoReplicaError(), 503), (ReplicaLostError("gone"), 503), (OSError(), 500)],
)
async def test_an_id_comes_back_when_it_went_wrong(error: Exception, status: int) -> None:
    async with serve(ScriptedDispatcher(error=error)) as served:
        body = {"messages": USER}
        assert await id_of(served, "POST", CHAT, json=body) == (status, "find-me")
        assert await id_of(served, "POST", CHAT, json={**body, "stream": True}) == (
            status,
            "find-me",
        )


@pytest.mark.parametrize("given", ["with space", "caf\u00e9", "x" * 129])
async def test_an_id_that_would_spoil_a_log_is_replaced(given: str) -> None:
    async with serve(ScriptedDispatcher()) as served:
        _, made = await id_of(served, "GET", "/health", headers={"x-request-id": given})

    assert made.isalnum()
    assert len(made) == 32


async def test_engines_are_told_the_id_and_the_trace_of_the_client() -> None:
    parent = f"00-{'a1' * 16}-{'b2' * 8}-00"
    async with serve(ScriptedDispatcher()) as served:
        body = {"messages": USER, "request_id": "another"}
        headers = {**ID, "traceparent": parent, "tracestate": "vendor=1"}
        await id_of(served, "POST", CHAT, headers=headers, json=body)
        await id_of(served, "POST", CHAT, headers={**ID, "traceparent": "00-x"}, json=body)
        first, second = served.script.requests

    assert first.client_request_id == second.client_request_id == "find-me"
    assert (first.traceparent, first.tracestate) == (parent, "vendor=1")
    assert (second.traceparent, second.tracestate) == ("", "")


async def test_an_id_is_there_before_a_stream_ends() -> None:
    async with serve(ScriptedDispatcher(hang_after=2)) as served:
        body = {"messages": USER, "stream": True}
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession() as http,
            http.post(served.url + CHAT, json=body, headers=ID) as response,
        ):
            assert response.headers["x-request-id"] == "find-me"
