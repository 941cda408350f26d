"""What a caller calls its request, in logs and in traces."""

from dataclasses import dataclass

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.logs import request_fields
from quire_engine.rpc.request_id import is_request_id
from quire_engine.rpc.trace_context import NO_TRACE_CONTEXT, TraceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a request comes from; checked, so that it is fit for a line of a log."""

    request_id: str = ""
    """The client's; need not be unique."""
    trace: TraceContext = NO_TRACE_CONTEXT

    @classmethod
    def of(cls, message: pb.GenerateRequest) -> "Origin":
        """Return what a request says of where it comes from."""
        request_id = message.client_request_id or message.request_id
        return cls(
            request_id=request_id if is_request_id(request_id) else "",
            trace=TraceContext.checked(message.traceparent, message.tracestate),
        )

    @property
    def log_fields(self) -> dict[str, str]:
        """The `extra` of what is logged about it."""
        return request_fields(self.request_id, self.trace.traceparent)


NO_ORIGIN = Origin()
