"""Errors of the operator process.

OperatorError
    ConfigError       the process cannot start: a flag or a variable has a value that cannot work
    KubeError         the API server answered with an error, or could not be reached
        NotFoundError     404: the object, or the API, does not exist
        ConflictError     409: somebody else was faster
        GoneError         410: a resource version that the server no longer has
        InvalidError      400, 422: the server will never take this object
        ForbiddenError    401, 403: the operator's account may not do this
        UnavailableError  429, 502-504, no connection: nothing else will work now either

A plain `KubeError` is about this one request: 500 for want of a free Service address, say.

`KubeError.of()` is the one place that reads status codes.
"""

from typing import Any


class OperatorError(Exception):
    """Something that the operator says in words."""


class ConfigError(OperatorError):
    """The operator cannot start with this configuration."""


class KubeError(OperatorError):
    """A request to the API server failed; `status` is 0 where no answer came."""

    def __init__(self, message: str, *, status: int = 0, cause: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause

    @classmethod
    def of(cls, status: int, answer: dict[str, Any]) -> "KubeError":
        """Make the error of an answer: a Status object, or whatever a proxy sent."""
        message = str(answer.get("message") or f"the API server answered {status}")
        causes = (answer.get("details") or {}).get("causes") or [{}]
        type_ = _BY_STATUS.get(status, KubeError)
        return type_(message, status=status, cause=str(causes[0].get("reason", "")))

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later with nothing changed by anyone."""
        return True


class NotFoundError(KubeError):
    """The object does not exist, or the API server does not know its kind."""


class ConflictError(KubeError):
    """The object exists already, or changed since it was read."""


class GoneError(KubeError):
    """The resource version is too old to continue from; list again."""


class InvalidError(KubeError):
    """The server refuses this object for what it says."""

    @property
    def is_retryable(self) -> bool:
        return False


class ForbiddenError(KubeError):
    """The operator's account lacks a right."""


class UnavailableError(KubeError):
    """The server is overloaded, restarting or unreachable."""


_BY_STATUS: dict[int, type[KubeError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
