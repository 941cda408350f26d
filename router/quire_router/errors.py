"""Router errors: everything a client can be told, in OpenAI's form.

ApiError                          status  type
    BadRequestError               400     invalid_request_error
        ContextLengthError        400     code context_length_exceeded
        UnsupportedError          400     code unsupported_value
    AuthenticationError           401     code invalid_api_key
    NotFoundError                 404     code not_found
        ModelNotFoundError        404     code model_not_found
    MethodNotAllowedError         405     code method_not_allowed
    BodyTooLargeError             413     code request_too_large
    RateLimitError                429     rate_limit_error
    InternalError                 500     server_error
    NotSupportedError             501     code not_supported: a route of OpenAI's that is not served
    UpstreamError                 502     the engine failed this request
    UnavailableError              503     retry later (Retry-After)
        NotReadyError             503     code not_ready: answers to readiness probes alone
        ShuttingDownError         503     code shutting_down
        NoReplicaError            503     code no_replica_available
        OverloadedError           503     code server_overloaded
        ReplicaLostError          503     code replica_lost: the engine went away

ConfigError                       the router cannot start

`ApiError.body` is the one place that renders them; `app.py` and `sse.py` only send what it gives.
"""

from typing import Any, ClassVar

RETRY_AFTER_S = 1.0


class ConfigError(Exception):
    """The configuration cannot work; the message names the value and what would work."""


class ApiError(Exception):
    """A request fails, and the client is told why.

    `retry_after_s` becomes the Retry-After header; None sends none.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON object that OpenAI clients understand."""
        fields = {"message": self.message, "type": self.type, "param": self.param}
        return {"error": {**fields, "code": self.code}}


class BadRequestError(ApiError):
    """The request can never succeed as it is."""

    status = 400
    type = "invalid_request_error"


class ContextLengthError(BadRequestError):
    """Prompt and completion do not fit into the model's context."""

    code = "context_length_exceeded"


class UnsupportedError(BadRequestError):
    """A field or value that OpenAI knows and this server does not do."""

    code = "unsupported_value"


class AuthenticationError(ApiError):
    """The API key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFoundError(ApiError):
    """There is nothing at this path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFoundError(NotFoundError):
    """No replica serves a model of this name."""

    code = "model_not_found"

    def __init__(self, model: object) -> None:
        super().__init__(f"the model {model!r} does not exist", param="model")


class MethodNotAllowedError(ApiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLargeError(ApiError):
    """The request body is larger than the router takes."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimitError(ApiError):
    """The client sends too much; it may try again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s = RETRY_AFTER_S


class InternalError(ApiError):
    """Our mistake. Says nothing of the cause: that is in the log, by request id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; the server's log has the cause (request {request_id})")


class NotSupportedError(ApiError):
    """A route of OpenAI's that this server does not have."""

    status = 501
    type = "invalid_request_error"
    code = "not_supported"


class UpstreamError(ApiError):
    """The engine failed this request."""

    status = 502
    code = "engine_error"


class UnavailableError(ApiError):
    """Nothing is wrong with the request; it can be sent again."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"
    retry_after_s = RETRY_AFTER_S


class NotReadyError(UnavailableError):
    """The router does not know yet which replicas there are."""

    code = "not_ready"

    def __init__(self) -> None:
        super().__init__("the replicas are still being looked for")


class ShuttingDownError(UnavailableError):
    """The router ends before this request has, or soon."""

    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the router is shutting down; try again")


class NoReplicaError(UnavailableError):
    """No replica is ready."""

    code = "no_replica_available"

    def __init__(self, message: str = "no replica is ready; try again later") -> None:
        super().__init__(message)


class OverloadedError(UnavailableError):
    """Every queue is full."""

    code = "server_overloaded"


class ReplicaLostError(UnavailableError):
    """The engine that served this request went away."""

    code = "replica_lost"
