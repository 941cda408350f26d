"""`/v1/replicas` and its events, of a whole router in front of a real engine server."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from http_support import DEADLINE_S, Served, serve_engine, until
from quire_engine.testing import FakeEngine

SECRET = "the swordfish sleeps"


async def events(
    served: Served, **headers: str
) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Yield name and data of each event."""
    url = served.url + "/v1/replicas/events"
    async with served.http.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        name = ""
        async for line in response.content:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


async def show(served: Served) -> dict[str, Any]:
    _, text = await served.get("/v1/replicas")
    shown: dict[str, Any] = json.loads(text)
    return shown


async def test_a_request_is_shown_with_its_replica_and_why() -> None:
    async with FakeEngine() as engine, serve_engine(engine.address) as served:
        await until(lambda: served.app.is_ready)
        while (await show(served))["replicas"][0]["index_mode"] != "exact":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await served.post("/v1/completions", {"prompt": "x" * 64, "max_tokens": 4})

        shown = await show(served)

    [replica], [request] = shown["replicas"], shown["requests"]
    assert replica["replica"] == request["replica"] == engine.address
    assert replica["state"] == "ready"
    assert replica["breaker"] == "closed"
    assert replica["index_mode"] == "exact"
    assert replica["requests"] == 1
    assert replica["in_flight"] == 0
    assert request["reason"] == "only"
    assert request["outcome"] == "done"
    assert request["completion_tokens"] == 4
    assert request["prompt_tokens"] == replica["prompt_tokens"] == 64
    assert request["candidates"][0]["cost_s"] > 0
    assert request["first_response_s"] <= request["total_s"]


async def test_nothing_that_a_client_wrote_is_shown() -> None:
    async with FakeEngine() as engine, serve_engine(engine.address) as served:
        await until(lambda: served.app.is_ready)
        await served.post(
            "/v1/completions",
            {"prompt": SECRET, "user": SECRET, "cache_salt": SECRET, "request_id": "secret-id"},
            **{"authorization": "Bearer secret-key", "x-request-id": "secret-request"},
        )

        _, text = await served.get("/v1/replicas")

    assert '"outcome":"done"' in text
    assert "swordfish" not in text
    assert "secret" not in text


async def test_events_begin_with_everything_and_go_on_with_what_changed() -> None:
    async with FakeEngine() as engine, serve_engine(engine.address) as served:
        await until(lambda: served.app.is_ready)
        await served.post("/v1/completions", {"prompt": "one", "max_tokens": 2})
        async with aclosing(events(served)) as stream:
            first = await anext(stream)
            quiet = await anext(stream)
            await served.post("/v1/completions", {"prompt": "two", "max_tokens": 2})
            busy = await anext(stream)
            while not busy[1]["requests"]:
                busy = await anext(stream)

    assert [first[0], quiet[0], busy[0]] == ["snapshot", "update", "update"]
    assert [request["number"] for request in first[1]["requests"]] == [1]
    assert first[1]["replicas"][0]["history"]["interval_s"] == 1.0
    assert quiet[1]["requests"] == []
    assert quiet[1]["replicas"][0]["history"] is None
    assert [request["number"] for request in busy[1]["requests"]] == [2]


async def test_a_sleep_that_ends_early_repeats_no_update(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(
        "quire_router.replica_feed.asyncio",
        SimpleNamespace(sleep=lambda duration_s: sleep(duration_s * 0.7)),
    )
    begun_at = time.monotonic()
    async with aclosing(events(served)) as stream:
        for _ in range(3):
            await anext(stream)

    assert time.monotonic() - begun_at > 1.0


async def test_watching_needs_a_key_when_there_are_keys(serve_with: Any) -> None:
    served = await serve_with(api_keys=("k",))

    refused = [await served.get(path) for path in ("/v1/replicas", "/v1/replicas/events")]
    allowed, _ = await served.get("/v1/replicas", authorization="Bearer k")

    assert [status for status, _ in refused] == [401, 401]
    assert allowed == 200


async def test_events_end_when_the_router_stops(served: Served) -> None:
    async with aclosing(events(served)) as stream:
        await anext(stream)
        served.app.begin_shutdown()
        async with asyncio.timeout(DEADLINE_S):
            rest = [name async for name, _ in stream]

    assert len(rest) <= 1


async def test_watchers_do_not_count_as_requests_in_flight(served: Served) -> None:
    async with aclosing(events(served)) as stream:
        await anext(stream)
        assert "quire_router_requests_in_flight 0.0" in served.metrics()


async def test_a_watcher_that_leaves_is_let_go(served: Served) -> None:
    async with aiohttp.ClientSession() as session:
        response = await session.get(served.url + "/v1/replicas/events")
        await response.content.readline()
        response.close()
    route = 'quire_router_requests_total{route="/v1/replicas/events",status="200"}'
    await until(lambda: route in served.metrics())
