"""What is told about a request for its trace; here nobody listens.

`spans.py` has the same classes with a collector behind them. A request has a trace, every prompt of
it a generation, and every replica that a generation was sent to an attempt.
"""

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.trace_context import NO_TRACE_CONTEXT, TraceContext
from quire_router.decisions import Decision


class AttemptTrace:
    """A generation on one replica. It ends once: done, failed, or cancelled."""

    def responded(self, response: pb.GenerateResponse) -> None:
        """A response came; the last has `usage`."""

    def failed(self, reason: str, code: int) -> None:
        """The replica failed it; `code` is gRPC's."""

    def cancelled(self) -> None:
        """It was taken back: nobody waits for it any more."""


class GenerationTrace:
    """One generation on its way to a replica, or to several in turn."""

    def sent(self, decision: Decision, request: pb.GenerateRequest) -> AttemptTrace:
        """A replica was chosen; the engine's spans will be where `request` says."""
        return NO_ATTEMPT

    def given_up(self) -> None:
        """No replica could take it for too long."""


class RequestTrace:
    """One HTTP request."""

    @property
    def context(self) -> TraceContext:
        """Names its span; empty when it has none."""
        return NO_TRACE_CONTEXT

    def asked(self, model: str, request: pb.GenerateRequest) -> None:
        """The request is understood, and names a model that is served."""

    def generation(self) -> GenerationTrace:
        """Something is to be generated for it."""
        return NO_GENERATION

    def ended(self, status: int, failure: str) -> None:
        """It was answered; `failure` is what went wrong, in a word."""


class RequestTracer:
    """Begins the traces of requests."""

    def begin(self, method: str, route: str, request_id: str, parent: TraceContext) -> RequestTrace:
        """Begin a trace, or go on with the client's."""
        return NO_TRACE

    def close(self) -> None:
        """Send what is left; blocks for a moment."""


NO_ATTEMPT = AttemptTrace()
NO_GENERATION = GenerationTrace()
NO_TRACE = RequestTrace()
NO_TRACER = RequestTracer()
