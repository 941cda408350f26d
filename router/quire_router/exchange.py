"""One HTTP request and its answer, on bare ASGI.

Knows how far the answer has come, so that an error is sent in the form that still fits: as a
response with its own status, or as the last event of a stream.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import orjson

from quire_engine.rpc.logs import request_fields
from quire_engine.rpc.trace_context import NO_TRACE_CONTEXT, TraceContext
from quire_router.errors import ApiError, BodyTooLargeError
from quire_router.lifecycle import Lifecycle
from quire_router.traces import NO_TRACE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
Headers = list[Header]

JSON_TYPE = (b"content-type", b"application/json")
STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientDisconnectedError(Exception):
    """The client went away; there is nobody to answer."""


class Exchange:
    """The request and what was sent back so far."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        request_id: str,
        lifecycle: Lifecycle,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.request_id = request_id
        self._lifecycle = lifecycle
        self.started_at = time.monotonic()
        self.status = 0
        """Of the answer; 0 before it has begun."""
        self.failure = ""
        """What went wrong, in a word; empty while nothing has."""
        self.trace = NO_TRACE
        self.trace_context = NO_TRACE_CONTEXT
        """Of the request's own span, or of the client's where there is none."""
        self._streams = False

    def header(self, name: bytes) -> bytes | None:
        """Return a request header; names are lower-case."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    def received_trace(self) -> TraceContext:
        """Return what the client says of the trace that the request belongs to."""
        parent = self.header(b"traceparent")
        if parent is None:
            return NO_TRACE_CONTEXT
        state = self.header(b"tracestate") or b""
        return TraceContext.checked(parent.decode("latin-1"), state.decode("latin-1"))

    @property
    def log_fields(self) -> dict[str, str]:
        """The `extra` of what is logged about it."""
        return request_fields(self.request_id, self.trace_context.traceparent)

    async def send(self, message: Message) -> None:
        """Send an ASGI message, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._own_headers()]
        await self._send(message)

    async def send_json(
        self, body: bytes, *, status: int = 200, headers: Sequence[Header] = ()
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [JSON_TYPE, length, *headers],
            }
        )
        await self._send({"type": "http.response.body", "body": body})

    async def send_event(self, data: bytes) -> None:
        """Send server-sent events as they are; the first begins the stream."""
        if not self._streams:
            self._streams = True
            await self.send(
                {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self, data: bytes) -> None:
        """Send the last events."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def send_error(self, error: ApiError) -> None:
        """Tell the client of an error, if it can still be told."""
        body = orjson.dumps(error.body())
        if not self.status:
            await self.send_json(body, status=error.status, headers=error_headers(error))
        elif self._streams:
            await self.end_stream(b"data: " + body + b"\n\n")

    def _own_headers(self) -> Headers:
        elapsed_ms = int((time.monotonic() - self.started_at) * 1000)
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", b"%d" % elapsed_ms),
        ]
        if self._lifecycle.is_stopping:
            # A client that keeps its connection would send the next request to a closed door.
            headers.append((b"connection", b"close"))
        return headers


def error_headers(error: ApiError) -> Headers:
    """Return the headers that belong to an error."""
    headers: Headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, BodyTooLargeError):
        # The rest of the body is not read, so the connection is of no further use.
        headers.append((b"connection", b"close"))
    return headers


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """Return the whole request body.

    Raises:
        BodyTooLargeError: it is announced as, or turns out, longer than `max_bytes`.
        ClientDisconnectedError: it never ended.
    """
    announced = next((value for key, value in scope["headers"] if key == b"content-length"), b"0")
    _check_size(int(announced) if announced.isdigit() else 0, max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        _check_size(size, max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise BodyTooLargeError(
            f"the request body has {num_bytes} bytes or more; at most {max_bytes} are taken "
            "(--max-body-bytes)"
        )
