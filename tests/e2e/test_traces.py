"""One trace from HTTP to the engine's last token: real processes, and a real OTLP receiver."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from otlp_receiver import (
    CLIENT,
    DEADLINE_S,
    ERROR,
    INTERNAL,
    SERVER,
    Received,
    Receiver,
    grpc_receiver,
    http_receiver,
)
from quire_engine.errors import RequestError
from quire_engine.rpc.tracing import start_tracing
from quire_engine.testing import FakeEngine, FakeModel
from serving_processes import Server, router, tcp_engine, until_answers

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HTTP_SPAN, ROUTE_SPAN, CALL_SPAN = f"POST {CHAT}", "route", "quire.engine.v1.Engine/Session"
ENGINE_SPANS = ("llm_request", "queue", "prefill", "decode")
TRACE_ID, PARENT_ID = "a1" * 16, "b2" * 8
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
SECRET = "canary-in-a-coal-mine"
BODY = {
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 6,
    "temperature": 0.5,
    "stop": [SECRET],
    "user": SECRET,
}


@dataclass(kw_only=True)
class Traced:
    """A router, its engine and their receiver."""

    receiver: Receiver
    router: Server
    engine: Server
    http: aiohttp.ClientSession

    async def ask(self, path: str = CHAT, **headers: str) -> dict[str, Any]:
        url = self.router.url + path
        body = BODY if path == CHAT else {"prompt": SECRET, "max_tokens": 6}
        async with self.http.post(url, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def end(self) -> None:
        """Stop both, which sends what is left."""
        self.router.terminate()
        assert await self.router.status() == 0
        self.engine.terminate()
        assert await self.engine.status() == 0


@asynccontextmanager
async def traced(
    receiving: Callable[[], AbstractAsyncContextManager[Receiver]] = grpc_receiver, *flags: str
) -> AsyncIterator[Traced]:
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        to = ("--otlp-traces-endpoint", receiver.url)
        engine = await stack.enter_async_context(tcp_engine(*to, *flags))
        gateway = await stack.enter_async_context(router(engine.address, flags=to))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await until_answers(f"{gateway.url}/ready", 200)
        yield Traced(receiver=receiver, router=gateway, engine=engine, http=http)


@pytest.mark.parametrize("receiving", [grpc_receiver, http_receiver])
async def test_one_trace_leads_from_the_client_to_the_engines_phases(
    receiving: Callable[[], AbstractAsyncContextManager[Receiver]],
) -> None:
    async with traced(receiving) as running:
        headers = {"traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "find-me"}
        await running.ask(**headers)
        await running.end()
        receiver = running.receiver

    spans = {span.name: span for span in receiver.spans}
    assert len(receiver.spans) == len(spans) == 8
    http, call, request = spans[HTTP_SPAN], spans[CALL_SPAN], spans["llm_request"]
    assert {span.trace_id for span in receiver.spans} == {TRACE_ID}
    assert {span.tracestate for span in receiver.spans} == {"vendor=1"}
    assert {span.status for span in receiver.spans} == {0}
    assert http.parent_id == PARENT_ID
    assert {spans[name].parent_id for name in ("prepare", ROUTE_SPAN, CALL_SPAN)} == {http.span_id}
    assert request.parent_id == call.span_id
    assert {spans[name].parent_id for name in ENGINE_SPANS[1:]} == {request.span_id}
    assert {spans[name].service for name in ENGINE_SPANS} == {"quire-engine"}
    assert {spans[name].service for name in (HTTP_SPAN, ROUTE_SPAN, CALL_SPAN)} == {"quire-router"}
    kinds = {http.kind: SERVER, call.kind: CLIENT, request.kind: SERVER}
    assert all(kind == wanted for kind, wanted in kinds.items())
    assert spans[ROUTE_SPAN].kind == spans["queue"].kind == INTERNAL
    check_times(spans)
    check_attributes(spans)


def check_times(spans: dict[str, Received]) -> None:
    queue, prefill, decode = (spans[name] for name in ENGINE_SPANS[1:])
    assert spans["prepare"].end_ns <= spans[ROUTE_SPAN].start_ns
    assert queue.end_ns == prefill.start_ns
    assert prefill.end_ns == decode.start_ns
    assert spans["llm_request"].start_ns == queue.start_ns
    for outer, inner in (
        (HTTP_SPAN, "prepare"),
        (HTTP_SPAN, ROUTE_SPAN),
        (HTTP_SPAN, CALL_SPAN),
        (CALL_SPAN, "llm_request"),
        ("llm_request", "decode"),
    ):
        assert spans[outer].start_ns <= spans[inner].start_ns
        assert spans[inner].start_ns <= spans[inner].end_ns <= spans[outer].end_ns
    # Six steps of 5 ms, of which the first is prefill's.
    assert prefill.end_ns - prefill.start_ns >= 5e6
    assert decode.end_ns - prefill.start_ns >= 6 * 5e6


def check_attributes(spans: dict[str, Received]) -> None:
    http, request = spans[HTTP_SPAN].attributes, spans["llm_request"].attributes
    for attributes in (http, request):
        assert attributes["gen_ai.request.id"] == "find-me"
        assert attributes["gen_ai.response.model"] == "fake"
        assert attributes["gen_ai.request.max_tokens"] == 6
        assert attributes["gen_ai.request.temperature"] == 0.5
        assert attributes["gen_ai.request.n"] == 1
        assert attributes["gen_ai.response.finish_reasons"] == ["length"]
        assert attributes["gen_ai.usage.output_tokens"] == 6
        assert attributes["gen_ai.usage.input_tokens"] > len(SECRET)
        first_s = attributes["gen_ai.latency.time_to_first_token"]
        assert 0 < first_s < attributes["gen_ai.latency.e2e"]
    assert http["http.request.method"] == "POST"
    assert http["http.route"] == CHAT
    assert http["http.response.status_code"] == 200
    assert http["gen_ai.operation.name"] == "chat"
    assert http["gen_ai.request.stream"] is False
    waited_s = request["gen_ai.latency.time_in_queue"]
    computed_s = request["gen_ai.latency.time_in_model_inference"]
    assert 0 <= waited_s < request["gen_ai.latency.time_to_first_token"]
    assert waited_s + computed_s <= request["gen_ai.latency.e2e"]
    route, call = spans[ROUTE_SPAN].attributes, spans[CALL_SPAN].attributes
    assert route["quire.routing.reason"] == "only"
    assert route["quire.routing.expected_cached_tokens"] == 0
    assert route["quire.attempt"] == call["quire.attempt"] == 1
    assert route["quire.replica"] == call["quire.replica"]
    assert call["rpc.grpc.status_code"] == 0
    assert f"{call['server.address']}:{call['server.port']}" == call["quire.replica"]


async def test_clients_decide_what_is_sampled_and_nothing_they_wrote_is_sent() -> None:
    async with traced() as running:
        await running.ask(traceparent=PARENT.removesuffix("01") + "00")
        await running.ask(COMPLETIONS, traceparent=f"not a trace of {SECRET}")
        await running.ask(authorization=f"Bearer {SECRET}", tracestate="vendor=1")
        wrong_body = {"model": SECRET, **BODY}
        async with running.http.post(running.router.url + CHAT, json=wrong_body) as response:
            assert response.status == 404
        await running.end()
        receiver = running.receiver

    assert receiver.trace(TRACE_ID) == []
    text, chat, wrong = (s for s in receiver.spans if s.name.startswith("POST"))
    assert len({text.trace_id, chat.trace_id, wrong.trace_id}) == 3
    assert {text.parent_id, chat.parent_id, wrong.parent_id} == {""}
    assert len(receiver.trace(text.trace_id)) == len(receiver.trace(chat.trace_id)) == 8
    assert [span.name for span in receiver.trace(wrong.trace_id)] == [HTTP_SPAN]
    assert wrong.attributes["error.type"] == "model_not_found"
    assert wrong.attributes["http.response.status_code"] == 404
    assert wrong.status == 0
    assert not [data for data in receiver.requests if SECRET.encode() in data]


async def test_a_second_attempt_is_a_second_call_with_the_reason_on_the_first() -> None:
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(grpc_receiver())
        tracing = start_tracing(receiver.url, "auto", service="quire-engine", environment={})
        good, bad = [
            await stack.enter_async_context(FakeEngine(FakeModel(decode_ms=1), tracing=tracing))
            for _ in range(2)
        ]
        flags = ("--otlp-traces-endpoint", receiver.url)
        gateway = await stack.enter_async_context(router(good.address, bad.address, flags=flags))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await until_two_are_up(gateway, http)
        bad.refuse(RequestError(f"a bug with {SECRET}"))
        for letter in "abc":  # prompts with nothing in common: one at least meets the bad replica
            messages = [{"role": "user", "content": letter * 50 + SECRET}]
            body = {**BODY, "messages": messages}
            async with http.post(gateway.url + CHAT, json=body) as response:
                assert response.status == 200
        gateway.terminate()
        assert await gateway.status() == 0
        await asyncio.to_thread(tracing.close)

    failed, done = find_retried(receiver)
    assert failed.attributes["quire.replica"] == bad.address
    assert (failed.attributes["quire.attempt"], done.attributes["quire.attempt"]) == (1, 2)
    assert (failed.status, failed.attributes["error.type"]) == (ERROR, "fault")
    assert failed.attributes["rpc.grpc.status_code"] == 13
    assert (done.status, done.attributes["quire.replica"]) == (0, good.address)
    assert failed.end_ns <= done.start_ns
    trace = receiver.trace(failed.trace_id)
    [http_span] = [span for span in trace if span.name == HTTP_SPAN]
    assert (http_span.status, http_span.attributes["http.response.status_code"]) == (0, 200)
    routes = sorted((s for s in trace if s.name == ROUTE_SPAN), key=lambda span: span.start_ns)
    assert [span.attributes["quire.replica"] for span in routes] == [bad.address, good.address]
    by_parent = {span.parent_id: span for span in trace if span.name == "llm_request"}
    assert by_parent[failed.span_id].status == ERROR
    assert by_parent[failed.span_id].attributes["error.type"] == "RequestError"
    assert by_parent[done.span_id].status == 0
    assert not [data for data in receiver.requests if SECRET.encode() in data]


async def until_two_are_up(gateway: Server, http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with http.get(f"{gateway.url}/v1/replicas") as response:
                replicas = (await response.json())["replicas"]
            if [replica["state"] for replica in replicas] == ["ready", "ready"]:
                return
            await asyncio.sleep(0.02)


def find_retried(receiver: Receiver) -> list[Received]:
    """Return the two calls of the first request that had two."""
    calls = receiver.named(CALL_SPAN)
    trace_id = next(span.trace_id for span in calls if span.attributes["quire.attempt"] == 2)
    return [span for span in calls if span.trace_id == trace_id]


async def test_a_request_whose_client_left_has_its_spans_up_to_then() -> None:
    async with traced(grpc_receiver, "--decode-ms", "20") as running:
        url, body = running.router.url + CHAT, {**BODY, "max_tokens": 4000, "stream": True}
        async with running.http.post(url, json=body, headers={"traceparent": PARENT}) as response:
            for _ in range(3):
                await response.content.readuntil(b"\n\n")
        await running.end()
        spans = {span.name: span for span in running.receiver.spans}

    http, call, request = spans[HTTP_SPAN], spans[CALL_SPAN], spans["llm_request"]
    assert http.attributes["error.type"] == "client_disconnected"
    assert call.attributes["error.type"] == "cancelled"
    assert request.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert 2 <= request.attributes["gen_ai.usage.completion_tokens"] < 4000
    assert {http.status, call.status, request.status} == {0}
    assert spans["prefill"].end_ns == spans["decode"].start_ns
    assert spans["decode"].end_ns <= request.end_ns


async def test_a_router_that_traces_nothing_passes_the_clients_trace_on() -> None:
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(grpc_receiver())
        engine = await stack.enter_async_context(tcp_engine("--otlp-traces-endpoint", receiver.url))
        gateway = await stack.enter_async_context(router(engine.address))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await until_answers(f"{gateway.url}/ready", 200)
        headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
        async with http.post(gateway.url + CHAT, json=BODY, headers=headers) as response:
            assert response.status == 200
        engine.terminate()
        assert await engine.status() == 0

    [request] = receiver.named("llm_request")
    assert (request.trace_id, request.parent_id) == (TRACE_ID, PARENT_ID)
    assert request.tracestate == "vendor=1"


async def test_serving_goes_on_without_a_collector_and_ends_in_time() -> None:
    flags = ("--otlp-traces-endpoint", "grpc://127.0.0.1:1")
    async with (
        FakeEngine() as engine,
        router(engine.address, flags=flags) as gateway,
        aiohttp.ClientSession() as http,
    ):
        await until_answers(f"{gateway.url}/ready", 200)
        async with http.post(gateway.url + CHAT, json=BODY) as response:
            assert response.status == 200
        gateway.terminate()
        assert await gateway.status() == 0
