"""Engine errors.

QuireError
    ConfigError                the process cannot start; the command line exits with 2
    RequestError               one request fails, the engine keeps serving
        InvalidRequestError    the client's mistake; `param` names the field
            PromptTooLongError
        QueueFullError         too much is waiting; retry later or elsewhere
        DrainingError          this engine takes no new work; retry elsewhere
    EngineDeadError            the core process is gone; nothing more will be computed

`server/status.py` is the one place that maps this tree to gRPC status codes.
"""


class QuireError(Exception):
    """Root of every error that Quire raises on purpose."""


class ConfigError(QuireError):
    """The configuration cannot work; the message names the value and what would work."""


class RequestError(QuireError):
    """One request fails; the engine keeps serving the others."""


class InvalidRequestError(RequestError):
    """The request can never succeed as it is; `param` names the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for even one generated token."""

    def __init__(self, num_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"the prompt has {num_tokens} tokens; this model's maximum context length is "
            f"{max_model_len} tokens, prompt and completion together",
            param="prompt",
        )
        self.num_tokens = num_tokens
        self.max_model_len = max_model_len


class QueueFullError(RequestError):
    """Too many requests are waiting already."""

    def __init__(self, num_waiting: int, max_num_queued_reqs: int) -> None:
        super().__init__(
            f"{num_waiting} requests are waiting; at most {max_num_queued_reqs} may "
            "(--max-num-queued-reqs)"
        )


class DrainingError(RequestError):
    """The engine finishes what it has and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the engine is draining and takes no new requests")


class EngineDeadError(QuireError):
    """The core process ended; every request in flight is lost."""
