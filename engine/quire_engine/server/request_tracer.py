"""The spans of a request: itself, and below it its queue, prefill and decode.

They are made when the request has ended, from the times that were noted anyway, so a request that
runs costs nothing. A phase whose end was not seen (aborted before its first token) has no span. No
span holds anything that a user wrote. Names and attributes are vLLM's, and OpenTelemetry's beside
them: https://github.com/open-telemetry/semantic-conventions-genai.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from quire_engine.outputs import RequestStats
from quire_engine.rpc.tracing import Tracing
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.metrics import FinishedRequest
from quire_engine.server.origin import Origin

Attributes = dict[str, str | int | float | list[str]]

REQUEST_SPAN = "llm_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequest:
    """All that is known of a request when it has ended; times are of `time.monotonic`."""

    origin: Origin
    params: SamplingParams
    stats: RequestStats
    finished: FinishedRequest
    ended_at: float
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request's life."""

    name: str
    began_at: float
    ended_at: float
    attributes: Attributes


class RequestTracer:
    """Turns requests that have ended into spans."""

    def __init__(self, tracing: Tracing, model_name: str) -> None:
        self._tracing = tracing
        self._model_name = model_name

    def ended(self, request: EndedRequest) -> None:
        """Make the spans; they are sent by another thread."""
        # Both clocks are read once, so that the spans of a request keep their distances.
        now_ns, now = time.time_ns(), time.monotonic()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        tracing = self._tracing
        context = tracing.context(request.origin.trace)
        began_ns = at(request.stats.arrival_time)
        span = tracing.start(REQUEST_SPAN, context, kind="server", at_ns=began_ns)
        if span.is_recording():
            span.set_attributes(_attributes(request, self._model_name))
            if request.error is not None:
                # Not its message: that may quote what the user wrote.
                tracing.mark_failed(span, type(request.error).__name__)
            below = tracing.below(span)
            for phase in _phases(request):
                child = tracing.start(phase.name, below, at_ns=at(phase.began_at))
                child.set_attributes(phase.attributes)
                child.end(at(phase.ended_at))
        span.end(at(request.ended_at))

    def refused(self, error: Exception, origin: Origin) -> None:
        """Make the span of a request that was not taken in: a moment, and an error."""
        context = self._tracing.context(origin.trace)
        span = self._tracing.start(REQUEST_SPAN, context, kind="server")
        span.set_attribute("gen_ai.request.id", origin.request_id)
        self._tracing.mark_failed(span, type(error).__name__)
        span.end()


def _phases(request: EndedRequest) -> Iterator[Phase]:
    stats, finished = request.stats, request.finished
    if not stats.scheduled_ts:
        return
    prefill: Attributes = {}
    if finished.num_prompt_tokens is not None:
        prefill["gen_ai.usage.input_tokens"] = finished.num_prompt_tokens
        prefill["gen_ai.usage.cache_read.input_tokens"] = finished.num_cached_tokens
    decode: Attributes = {"gen_ai.usage.output_tokens": finished.num_generation_tokens}
    yield Phase("queue", stats.arrival_time, stats.scheduled_ts, {})
    yield Phase("prefill", stats.scheduled_ts, stats.first_token_ts, prefill)
    yield Phase("decode", stats.first_token_ts, stats.last_token_ts, decode)


def _attributes(request: EndedRequest, model_name: str) -> Attributes:
    finished, stats = request.finished, request.stats
    attributes: Attributes = {
        "gen_ai.provider.name": "quire",
        "gen_ai.response.model": model_name,
        "gen_ai.response.finish_reasons": [str(finished.finish_reason)],
        "gen_ai.usage.num_sequences": finished.num_completions,
        "gen_ai.usage.completion_tokens": finished.num_generation_tokens,
        "gen_ai.usage.output_tokens": finished.num_generation_tokens,
        "gen_ai.latency.e2e": request.ended_at - stats.arrival_time,
    }
    if request.origin.request_id:
        attributes["gen_ai.request.id"] = request.origin.request_id
    if finished.num_prompt_tokens is not None:
        attributes["gen_ai.usage.prompt_tokens"] = finished.num_prompt_tokens
        attributes["gen_ai.usage.input_tokens"] = finished.num_prompt_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = finished.num_cached_tokens
        attributes["quire.num_preemptions"] = finished.num_preemptions
    attributes |= _sampling(request.params)
    if stats.scheduled_ts:
        attributes |= _latencies(stats)
    return attributes


def _sampling(params: SamplingParams) -> Attributes:
    attributes: Attributes = {
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    return attributes


def _latencies(stats: RequestStats) -> Attributes:
    return {
        "gen_ai.latency.time_in_queue": stats.scheduled_ts - stats.arrival_time,
        "gen_ai.latency.time_to_first_token": stats.first_token_ts - stats.arrival_time,
        "gen_ai.latency.time_in_model_prefill": stats.first_token_ts - stats.scheduled_ts,
        "gen_ai.latency.time_in_model_decode": stats.last_token_ts - stats.first_token_ts,
        "gen_ai.latency.time_in_model_inference": stats.last_token_ts - stats.scheduled_ts,
    }
