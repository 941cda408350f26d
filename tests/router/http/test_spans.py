"""The router's own spans where requests do not end well, at a real OTLP receiver."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from http_support import ScriptedDispatcher, Served, serve, serve_app, until
from otlp_receiver import ERROR, Received, Receiver, grpc_receiver
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.app import RouterApp
from quire_router.config import RouterConfig
from quire_router.dispatcher import PoolDispatcher
from quire_router.errors import NoReplicaError, UpstreamError

COMPLETIONS = "/v1/completions"
HTTP_SPAN, CALL_SPAN = f"POST {COMPLETIONS}", "quire.engine.v1.Engine/Session"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with grpc_receiver() as receiver:
        yield receiver


@dataclass
class Answered:
    status: int
    spans: list[Received]


async def traced(script: ScriptedDispatcher, receiver: Receiver, body: Any) -> Answered:
    """Ask a router in front of a script; return once it has ended and all spans are there."""
    async with serve(script, otlp_traces_endpoint=receiver.url) as served:
        async with served.http.post(served.url + COMPLETIONS, json=body) as response:
            await response.read()
        await served.get("/v1/models")
    return Answered(response.status, receiver.spans)


@asynccontextmanager
async def in_front_of(*addresses: str, receiver: Receiver, **options: Any) -> AsyncIterator[Served]:
    """A router with its real pool."""
    config = RouterConfig(replicas=addresses, otlp_traces_endpoint=receiver.url, **options)
    registry = CollectorRegistry()
    app = RouterApp(config, PoolDispatcher(config, registry), registry)
    async with serve_app(app, ScriptedDispatcher(), registry) as served:
        await until(lambda: app.is_ready)
        yield served


async def test_only_what_generates_is_traced(receiver: Receiver) -> None:
    answered = await traced(ScriptedDispatcher(), receiver, {"prompt": "hi"})

    prepared, http = answered.spans
    assert (prepared.name, http.name) == ("prepare", HTTP_SPAN)
    assert prepared.parent_id == http.span_id
    assert http.attributes["gen_ai.operation.name"] == "text_completion"
    assert http.service == "quire-router"


@pytest.mark.parametrize(
    ("body", "status", "failure", "span_status"),
    [
        ({}, 400, "missing_required_parameter", 0),
        ({"prompt": "hi", "model": "none"}, 404, "model_not_found", 0),
        ({"prompt": "hi"}, 503, "no_replica_available", ERROR),
    ],
)
async def test_a_clients_mistake_is_no_failure_of_ours(
    receiver: Receiver, body: dict[str, Any], status: int, failure: str, span_status: int
) -> None:
    answered = await traced(ScriptedDispatcher(error=NoReplicaError()), receiver, body)

    span = answered.spans[-1]
    assert span.name == HTTP_SPAN
    assert answered.status == span.attributes["http.response.status_code"] == status
    assert (span.attributes["error.type"], span.status) == (failure, span_status)


async def test_a_stream_that_fails_after_200_has_failed(receiver: Receiver) -> None:
    script = ScriptedDispatcher(error=UpstreamError("the engine failed"), error_after=3)

    answered = await traced(script, receiver, {"prompt": "hi", "stream": True})

    span = answered.spans[-1]
    assert answered.status == span.attributes["http.response.status_code"] == 200
    assert (span.attributes["error.type"], span.status) == ("engine_error", ERROR)


async def test_a_request_that_no_replica_takes_has_a_route_that_leads_nowhere(
    receiver: Receiver,
) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(FakeEngine())
        router = in_front_of(engine.address, receiver=receiver, replica_wait_s=0.2)
        served = await stack.enter_async_context(router)
        await engine.stop()
        await until(lambda: not served.app.is_ready)
        status, _ = await served.post(COMPLETIONS, {"prompt": "hi"})

    spans = {span.name: span for span in receiver.spans}
    assert status == 503
    assert set(spans) == {HTTP_SPAN, "prepare", "route"}
    route = spans["route"]
    assert route.parent_id == spans[HTTP_SPAN].span_id
    assert (route.attributes["error.type"], route.status) == ("no_replica", ERROR)
    assert route.end_ns - route.start_ns >= 0.15e9


async def test_each_prompt_of_a_batch_has_its_own_attempt_and_the_request_the_sum(
    receiver: Receiver,
) -> None:
    async with (
        FakeEngine(FakeModel(decode_ms=1)) as engine,
        in_front_of(engine.address, receiver=receiver) as served,
    ):
        body = {"prompt": ["hello", "you"], "max_tokens": 3, "n": 2, "temperature": 1.0, "seed": 3}
        await served.post(COMPLETIONS, body)

    http = receiver.named(HTTP_SPAN)[0].attributes
    calls = [span.attributes for span in receiver.named(CALL_SPAN)]
    assert http["gen_ai.response.finish_reasons"] == ["length"] * 4
    assert http["gen_ai.usage.output_tokens"] == 12
    assert [call["gen_ai.usage.output_tokens"] for call in calls] == [6, 6]
    assert http["gen_ai.usage.input_tokens"] == sum(c["gen_ai.usage.input_tokens"] for c in calls)
    assert (http["gen_ai.request.n"], http["gen_ai.request.seed"]) == (2, 3)
    assert len(receiver.named("route")) == 2
    assert len(receiver.named("prepare")) == 1
