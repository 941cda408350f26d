import grpc
import pytest

from quire_engine.errors import (
    DrainingError,
    EngineDeadError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
)
from quire_engine.server.outbox import ReaderTooSlowError
from quire_engine.server.status import error_message, status_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("no"), grpc.StatusCode.INVALID_ARGUMENT),
        (PromptTooLongError(9, 8), grpc.StatusCode.INVALID_ARGUMENT),
        (QueueFullError(5, 5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ReaderTooSlowError(5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (DrainingError(), grpc.StatusCode.FAILED_PRECONDITION),
        (EngineDeadError("gone"), grpc.StatusCode.UNAVAILABLE),
        (RequestError("the step failed"), grpc.StatusCode.INTERNAL),
        (KeyError("a bug"), grpc.StatusCode.INTERNAL),
    ],
)
def test_every_error_has_its_status(error: Exception, code: grpc.StatusCode) -> None:
    assert status_code(error) is code
    assert error_message(error).code == code.value[0]


def test_the_field_at_fault_travels_with_the_error() -> None:
    message = error_message(InvalidRequestError("top_p must be in (0, 1], got 2", "top_p"))

    assert (message.message, message.param) == ("top_p must be in (0, 1], got 2", "top_p")
