"""The spans of a request that the router makes, for an OpenTelemetry collector.

    POST /v1/chat/completions           server   the whole answer, what was asked for and used
    |- prepare                          internal reading, checking, rendering and tokenizing it
    |- route                            internal from the request, or a failure, to a choice
    |- quire.engine.v1.Engine/Session   client   one replica's attempt; the engine's spans are below
    |- route, .../Session ...           again, when a replica failed it

Attributes are OpenTelemetry's for HTTP, RPC and generative AI, vLLM's `gen_ai.latency.*`, and
`quire.*`. None holds a prompt, an answer, a key, a stop string or a message of an error.
"""

import time
from typing import Any

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.trace_context import TraceContext
from quire_engine.rpc.tracing import Tracing
from quire_router.decisions import Decision
from quire_router.traces import AttemptTrace, GenerationTrace, RequestTrace, RequestTracer

RPC_SERVICE, RPC_METHOD = "quire.engine.v1.Engine", "Session"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
SAMPLING_FIELDS = (
    *("max_tokens", "temperature", "top_p", "top_k"),
    *("frequency_penalty", "presence_penalty", "seed"),
)
"""Fields of SamplingParams that OpenTelemetry has names for, and that are numbers."""
FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORT: "abort",
}

CLIENT_LEFT = "client_disconnected"

Attributes = dict[str, Any]


class SpanTracer(RequestTracer):
    """Begins spans below the client's, or new traces."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def begin(self, method: str, route: str, request_id: str, parent: TraceContext) -> RequestTrace:
        context = self._tracing.context(parent)
        span = self._tracing.start(f"{method} {route}", context, kind="server")
        if span.is_recording():
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "url.path": route,
                    "gen_ai.operation.name": OPERATIONS.get(route, route),
                    "gen_ai.provider.name": "quire",
                    "gen_ai.request.id": request_id,
                }
            )
        return RequestSpan(self._tracing, span)

    def close(self) -> None:
        self._tracing.close()


class RequestSpan(RequestTrace):
    """The span of an HTTP request, and what its attempts bring."""

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self.tracing = tracing
        self._span = span
        self._context = tracing.sent(span)
        self.below = tracing.below(span)
        self.is_recording = span.is_recording()
        self._began_at = time.monotonic()
        self._began_ns = time.time_ns()
        self._is_prepared = False
        self._first_token_s: float | None = None
        self._finish_reasons: list[str] = []
        self._usage = pb.Usage()

    @property
    def context(self) -> TraceContext:
        return self._context

    def asked(self, model: str, request: pb.GenerateRequest) -> None:
        if not self.is_recording:
            return
        sampling = request.sampling
        attributes: Attributes = {
            f"gen_ai.request.{name}": getattr(sampling, name)
            for name in SAMPLING_FIELDS
            if sampling.HasField(name)
        }
        attributes["gen_ai.request.model"] = attributes["gen_ai.response.model"] = model
        attributes["gen_ai.request.n"] = attributes["gen_ai.request.choice.count"] = sampling.n or 1
        attributes["gen_ai.request.stream"] = not request.final_only
        self._span.set_attributes(attributes)

    def generation(self) -> GenerationTrace:
        if not self._is_prepared:  # all prompts are, when the first one is sent
            self._is_prepared = True
            self.tracing.start("prepare", self.below, at_ns=self._began_ns).end()
        return RouteSpans(self)

    def responded(self, response: pb.GenerateResponse, finish_reasons: list[str]) -> None:
        """Take in what an attempt brought."""
        self._finish_reasons += finish_reasons
        if self._first_token_s is None and response.outputs:
            # An answer that comes as a whole was begun earlier; else this is 0.
            since_s = response.usage.generation_s
            self._first_token_s = time.monotonic() - self._began_at - since_s
        if response.HasField("usage"):
            self._usage.num_prompt_tokens += response.usage.num_prompt_tokens
            self._usage.num_completion_tokens += response.usage.num_completion_tokens
            self._usage.num_cached_tokens += response.usage.num_cached_tokens

    def ended(self, status: int, failure: str) -> None:
        if self.is_recording:
            self._span.set_attributes(self._outcome(status))
            # A stream that failed has said 200 before; a client that left is no failure.
            if status >= 500 or (failure not in ("", CLIENT_LEFT) and status < 400):
                self.tracing.mark_failed(self._span, failure)
            elif failure:
                self._span.set_attribute("error.type", failure)
        self._span.end()

    def _outcome(self, status: int) -> Attributes:
        attributes: Attributes = {
            "http.response.status_code": status,
            "gen_ai.latency.e2e": time.monotonic() - self._began_at,
            "gen_ai.response.finish_reasons": self._finish_reasons,
            **_usage_attributes(self._usage),
        }
        if self._first_token_s is not None:
            attributes["gen_ai.latency.time_to_first_token"] = self._first_token_s
        return attributes


class RouteSpans(GenerationTrace):
    """A span for each choice of a replica, beside those of the attempts."""

    def __init__(self, parent: RequestSpan) -> None:
        self.parent = parent
        self._since_ns = time.time_ns()

    def sent(self, decision: Decision, request: pb.GenerateRequest) -> AttemptTrace:
        if self.parent.is_recording:
            span = self._span()
            span.set_attributes(_decision_attributes(decision))
            span.end()
        attempt = AttemptSpan(self, decision)
        request.traceparent = attempt.context.traceparent
        request.tracestate = attempt.context.tracestate
        return attempt

    def given_up(self) -> None:
        span = self._span()
        self.parent.tracing.mark_failed(span, "no_replica")
        span.end()

    def choose_again(self) -> None:
        """An attempt has failed; what follows looks for another replica."""
        self._since_ns = time.time_ns()

    def _span(self) -> Any:
        parent = self.parent
        return parent.tracing.start("route", parent.below, at_ns=self._since_ns)


class AttemptSpan(AttemptTrace):
    """A call to one replica."""

    def __init__(self, route: RouteSpans, decision: Decision) -> None:
        request = route.parent
        self._route = route
        self._request = request
        self._span = request.tracing.start(
            f"{RPC_SERVICE}/{RPC_METHOD}", request.below, kind="client"
        )
        self.context = request.tracing.sent(self._span)
        if self._span.is_recording():
            self._span.set_attributes(_call_attributes(decision))

    def responded(self, response: pb.GenerateResponse) -> None:
        reasons = [
            FINISH_REASONS.get(output.finish_reason, "error")
            for output in response.outputs
            if output.finish_reason
        ]
        self._request.responded(response, reasons)
        if response.HasField("usage"):
            self._span.set_attribute("rpc.grpc.status_code", 0)
            self._span.set_attributes(_usage_attributes(response.usage))
            self._span.end()

    def failed(self, reason: str, code: int) -> None:
        self._span.set_attribute("rpc.grpc.status_code", code)
        self._request.tracing.mark_failed(self._span, reason)
        self._span.end()
        self._route.choose_again()

    def cancelled(self) -> None:
        self._span.set_attribute("rpc.grpc.status_code", 1)
        self._span.set_attribute("error.type", "cancelled")
        self._span.end()


def _usage_attributes(usage: pb.Usage) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
    }


def _decision_attributes(decision: Decision) -> Attributes:
    chosen = decision.chosen
    return {
        "quire.replica": chosen.name,
        "quire.attempt": decision.num_attempts,
        "quire.routing.reason": decision.reason.value,
        "quire.routing.num_candidates": len(decision.candidates),
        "quire.routing.num_prompt_tokens": decision.num_prompt_tokens,
        "quire.routing.expected_cached_tokens": chosen.cached_tokens,
        "quire.routing.predicted_cost_s": decision.costs[decision.candidates.index(chosen)],
        "quire.routing.waited_s": decision.waited_s,
    }


def _call_attributes(decision: Decision) -> Attributes:
    address = decision.chosen.name
    attributes: Attributes = {
        "rpc.system": "grpc",
        "rpc.service": RPC_SERVICE,
        "rpc.method": RPC_METHOD,
        "quire.replica": address,
        "quire.attempt": decision.num_attempts,
    }
    host, _, port = address.rpartition(":")
    if port.isdigit():
        return attributes | {"server.address": host.strip("[]"), "server.port": int(port)}
    return attributes | {"server.address": address.removeprefix("unix:")}
