"""W3C trace context, as it travels from client to router to engine.

A `traceparent` names a trace, the span that the next one belongs below, and whether it is recorded;
a `tracestate` is what tracing systems add. https://www.w3.org/TR/trace-context/
"""

import re
from dataclasses import dataclass
from typing import Self

MAX_TRACESTATE_CHARS = 512
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{0,64})?"
)
_TRACESTATE = re.compile(rf"[ -~\t]{{0,{MAX_TRACESTATE_CHARS}}}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The span that something belongs below; empty: none, it begins a trace."""

    traceparent: str = ""
    tracestate: str = ""

    @classmethod
    def checked(cls, traceparent: str, tracestate: str = "") -> Self:
        """Return what is well-formed of two headers; a bad parent makes both worthless."""
        if _TRACEPARENT.fullmatch(traceparent) is None:
            return cls()
        return cls(traceparent, tracestate if _TRACESTATE.fullmatch(tracestate) else "")


NO_TRACE_CONTEXT = TraceContext()


def trace_id_of(traceparent: str) -> str:
    """Return the id of the trace that a traceparent names; empty when it names none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found is not None else ""
