"""The spans of requests that end in every way an engine knows, at a real OTLP receiver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from engine_client import collect, generate, stub_of, until
from otlp_receiver import ERROR, Received, Receiver, grpc_receiver
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.errors import QueueFullError
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.tracing import Tracing, start_tracing
from quire_engine.testing import FakeEngine, FakeModel

TRACE_ID, PARENT_ID = "a1" * 16, "b2" * 8
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
PHASES = ["queue", "prefill", "decode"]


@dataclass(kw_only=True)
class Traced:
    """An engine in this process, and where its spans go."""

    engine: FakeEngine
    stub: Any
    receiver: Receiver
    tracing: Tracing

    async def spans(self) -> list[Received]:
        """Send what there is, and return it in order of its beginning."""
        await asyncio.to_thread(self.tracing.close)
        return sorted(self.receiver.spans, key=lambda span: (span.start_ns, -span.end_ns))


@asynccontextmanager
async def traced(
    model: FakeModel | None = None, config: EngineConfig | None = None
) -> AsyncIterator[Traced]:
    async with grpc_receiver() as receiver:
        tracing = start_tracing(receiver.url, "auto", service="quire-engine", environment={})
        async with (
            FakeEngine(model, config=config, tracing=tracing) as engine,
            stub_of(engine.address) as stub,
        ):
            yield Traced(engine=engine, stub=stub, receiver=receiver, tracing=tracing)


def sampled(request: pb.GenerateRequest) -> pb.GenerateRequest:
    request.traceparent, request.client_request_id = PARENT, "find-me"
    return request


async def test_metadata_says_what_the_message_does_not() -> None:
    async with traced() as running:
        metadata = (("traceparent", PARENT), ("tracestate", "v=1"), ("x-request-id", "theirs"))
        await collect(running.stub.Generate(generate(), metadata=metadata))
        await collect(running.stub.Generate(sampled(generate()), metadata=metadata))
        first, second = [s for s in await running.spans() if s.name == "llm_request"]

    assert (first.trace_id, first.parent_id, first.tracestate) == (TRACE_ID, PARENT_ID, "v=1")
    assert first.attributes["gen_ai.request.id"] == "theirs"
    assert second.attributes["gen_ai.request.id"] == "find-me"


async def test_a_parent_that_is_not_sampled_leaves_nothing() -> None:
    async with traced() as running:
        request = generate()
        request.traceparent = PARENT.removesuffix("01") + "00"
        await collect(running.stub.Generate(request))

        assert await running.spans() == []


async def test_completions_add_up_and_what_the_cache_gave_is_told() -> None:
    async with traced() as running:
        prompt = list(range(100))
        await collect(running.stub.Generate(sampled(generate(prompt, max_tokens=3))))
        again = generate(prompt, max_tokens=3, n=2, temperature=1.0, seed=7)
        await collect(running.stub.Generate(sampled(again)))
        _, request = [s for s in await running.spans() if s.name == "llm_request"]

    assert request.attributes["gen_ai.usage.num_sequences"] == 2
    assert request.attributes["gen_ai.usage.completion_tokens"] == 6
    assert request.attributes["gen_ai.usage.prompt_tokens"] == 100
    assert request.attributes["gen_ai.usage.cache_read.input_tokens"] == 96
    assert request.attributes["gen_ai.request.temperature"] == 1.0
    assert request.attributes["gen_ai.request.n"] == 2


async def test_preemptions_are_counted_and_decode_ends_with_the_last_token() -> None:
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=16))
    async with traced(FakeModel(decode_ms=1), config) as running:
        calls = [
            running.stub.Generate(sampled(generate([number] * 60, max_tokens=150, ignore_eos=True)))
            for number in range(3)
        ]
        await asyncio.gather(*map(collect, calls))
        spans = await running.spans()

    requests = [span for span in spans if span.name == "llm_request"]
    assert sum(span.attributes["quire.num_preemptions"] for span in requests) > 0
    for request in requests:
        queue, prefill, decode = [span for span in spans if span.parent_id == request.span_id]
        assert [queue.name, prefill.name, decode.name] == PHASES
        assert queue.end_ns == prefill.start_ns
        assert prefill.end_ns == decode.start_ns
        assert decode.end_ns <= request.end_ns


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_refusal_is_a_moment_with_its_kind_and_not_its_words(is_late: bool) -> None:
    async with traced() as running:
        if is_late:  # by the core
            running.engine.refuse(QueueFullError(7, 7))
            wrong = generate("a canary")
        else:
            wrong = generate("a canary", top_p=7.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(running.stub.Generate(sampled(wrong)))
        [request] = await running.spans()

    assert (request.name, request.status, request.parent_id) == ("llm_request", ERROR, PARENT_ID)
    kind = "QueueFullError" if is_late else "InvalidRequestError"
    assert request.attributes["error.type"] == kind
    assert request.attributes["gen_ai.request.id"] == "find-me"
    assert not [data for data in running.receiver.requests if b"canary" in data]


async def test_what_dies_with_the_core_has_failed_and_keeps_the_phases_it_had() -> None:
    async with traced(FakeModel(decode_ms=5)) as running:
        call = running.stub.Generate(sampled(generate(max_tokens=4000, ignore_eos=True)))
        await call.read()
        await running.engine.die()
        spans = await running.spans()

    request = next(span for span in spans if span.name == "llm_request")
    assert (request.status, request.attributes["error.type"]) == (ERROR, "EngineDeadError")
    assert [span.name for span in spans if span.parent_id == request.span_id] == PHASES


async def test_phases_that_nobody_saw_the_end_of_have_no_spans() -> None:
    async with traced() as running:
        running.engine.hang()
        call = running.stub.Generate(sampled(generate()))
        await until(lambda: running.engine.num_in_flight == 1)
        call.cancel()
        await until(lambda: running.engine.num_in_flight == 0)
        running.engine.resume()
        [request] = await running.spans()

    assert request.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert "gen_ai.latency.time_in_queue" not in request.attributes
    assert request.status == 0
