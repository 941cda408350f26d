"""The one table from the tree of errors to gRPC status codes."""

import grpc

from quire_engine.errors import (
    DrainingError,
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
    QuireError,
)
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.server.kv_mirror import SubscriberTooSlowError
from quire_engine.server.outbox import ReaderTooSlowError

STATUS_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DrainingError, grpc.StatusCode.FAILED_PRECONDITION),
    (EngineDeadError, grpc.StatusCode.UNAVAILABLE),
    (ReaderTooSlowError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SubscriberTooSlowError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (QuireError, grpc.StatusCode.INTERNAL),
)


def status_code(error: Exception) -> grpc.StatusCode:
    """Return the code of the first entry that `error` is an instance of."""
    for type_, code in STATUS_CODES:
        if isinstance(error, type_):
            return code
    return grpc.StatusCode.INTERNAL


def error_message(error: Exception) -> pb.Error:
    """Return the error as it travels inside a Session."""
    return pb.Error(
        code=status_code(error).value[0],
        message=str(error),
        param=getattr(error, "param", None) or "",
    )
