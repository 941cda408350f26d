"""What a failed request means: for the request, and for the replica that failed it."""

import enum

from quire_engine.rpc import engine_pb2 as pb
from quire_router.errors import (
    ApiError,
    BadRequestError,
    NoReplicaError,
    OverloadedError,
    ReplicaLostError,
    UpstreamError,
)


class Verdict(enum.Enum):
    """Why a replica did not serve a request."""

    REFUSED = "refused"
    """The request is wrong and would be everywhere."""
    FULL = "full"
    """No room there; another replica may have some."""
    DRAINING = "draining"
    """The replica takes nothing new."""
    LOST = "lost"
    """The replica, or the way to it, is gone."""
    FAULT = "fault"
    """The engine failed at this request."""


_VERDICTS = {  # by google.rpc.Code
    3: Verdict.REFUSED,  # INVALID_ARGUMENT
    8: Verdict.FULL,  # RESOURCE_EXHAUSTED
    9: Verdict.DRAINING,  # FAILED_PRECONDITION
    11: Verdict.REFUSED,  # OUT_OF_RANGE
    12: Verdict.REFUSED,  # UNIMPLEMENTED
    14: Verdict.LOST,  # UNAVAILABLE
}

ENGINE_FAULTS = frozenset({Verdict.LOST, Verdict.FAULT})
"""What counts against a replica; the rest is the client's doing, or says that it is busy."""


def verdict(error: pb.Error) -> Verdict:
    """Return what an engine's error means."""
    return _VERDICTS.get(error.code, Verdict.FAULT)


def api_error(verdict: Verdict, message: str, param: str = "") -> ApiError:
    """Return what the client is told when a request finally failed this way."""
    match verdict:
        case Verdict.REFUSED:
            return BadRequestError(message, param=param or None)
        case Verdict.FULL:
            return OverloadedError(f"every replica is full: {message}")
        case Verdict.DRAINING:
            return NoReplicaError("every replica is shutting down; try again later")
        case Verdict.LOST:
            return ReplicaLostError(f"the engine that served this request went away: {message}")
        case Verdict.FAULT:
            return UpstreamError(f"the engine failed: {message}")
