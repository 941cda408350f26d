"""The outermost layer: ids, keys, metrics and errors of every request, and the hot paths.

The paths that generate skip FastAPI: their handlers get the decoded body and an `Exchange`, and run
as tasks that end at once when the client goes away.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from quire_engine.rpc.request_id import is_request_id
from quire_router.auth import Authenticator
from quire_router.bodies import json_object
from quire_router.errors import (
    ApiError,
    InternalError,
    MethodNotAllowedError,
    ReplicaLostError,
    ShuttingDownError,
    UpstreamError,
)
from quire_router.exchange import (
    ClientDisconnectedError,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
)
from quire_router.http_metrics import HttpMetrics
from quire_router.lifecycle import Lifecycle
from quire_router.traces import NO_TRACER

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("quire_router.access")

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Exchange, dict[str, Any]], Coroutine[Any, Any, None]]

FAMILIES = {"/v1/models/": "/v1/models/{id}", "/page/": "/page/{file}"}
"""Names that metrics have for paths by how they begin."""
PROBES = frozenset({"/health", "/metrics", "/ping", "/ready", "/readyz"})
"""Routes that machines ask for all the time: only their failures are news."""
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client went away, in metrics; nginx's name for it."""


class Gateway:
    """An ASGI application around another one."""

    def __init__(
        self,
        application: Application,
        *,
        hot: Mapping[str, Handler],
        routes: frozenset[str],
        authenticator: Authenticator,
        metrics: HttpMetrics,
        lifecycle: Lifecycle,
        max_body_bytes: int,
        logs_access: bool = False,
    ) -> None:
        """`hot` are the handlers of POST by path; `routes` the other paths that metrics name."""
        self._application = application
        self._hot = hot
        self._routes = routes | set(hot)
        self._authenticator = authenticator
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._max_body_bytes = max_body_bytes
        self._logs_access = logs_access
        self.tracer = NO_TRACER
        """Whom the paths that generate are traced by."""
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        request_id = scope["request_id"] = request_id_of(scope)
        exchange = Exchange(scope, receive, send, request_id=request_id, lifecycle=self._lifecycle)
        route = self._route(scope["path"])
        if route in self._hot:
            self._begin_trace(exchange, route)
        # Autoscalers wake and size replicas by this: scrapes, probes and watchers must not count.
        num_generating = 1 if route in self._hot else 0
        self._metrics.in_flight.inc(num_generating)
        try:
            await self._answer(exchange, route)
        finally:
            self._metrics.in_flight.dec(num_generating)
            self._ended(exchange, route)

    def abort_all(self) -> None:
        """End every generation in flight with an error, for a shutdown that cannot wait."""
        for task in self._running:
            task.cancel()

    def _begin_trace(self, exchange: Exchange, route: str) -> None:
        received = exchange.received_trace()
        method, request_id = exchange.scope["method"], exchange.request_id
        exchange.trace = self.tracer.begin(method, route, request_id, received)
        own = exchange.trace.context
        exchange.trace_context = own if own.traceparent else received

    def _ended(self, exchange: Exchange, route: str) -> None:
        elapsed_s = time.monotonic() - exchange.started_at
        self._metrics.requests.labels(route, str(exchange.status)).inc()
        self._metrics.request_s.labels(route).observe(elapsed_s)
        exchange.trace.ended(exchange.status, exchange.failure)
        if self._logs_access:
            is_probe = route in PROBES and exchange.status < 400
            # The route and not the path: whatever else a client writes there may be a secret.
            access_logger.log(
                logging.DEBUG if is_probe else logging.INFO,
                "access method=%s route=%s status=%d duration_ms=%.1f client=%s",
                exchange.scope["method"],
                route,
                exchange.status,
                elapsed_s * 1e3,
                (exchange.scope.get("client") or ("-",))[0],
                extra=exchange.log_fields,
            )

    async def _answer(self, exchange: Exchange, route: str) -> None:
        try:
            await self._dispatch(exchange)
        except ApiError as error:
            exchange.failure = error.code or error.type
            _log_failure(error, exchange, route)
            await exchange.send_error(error)
        except ClientDisconnectedError:
            exchange.failure = "client_disconnected"
            self._metrics.disconnects.labels(route).inc()
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        except Exception:
            exchange.failure = "internal_error"
            logger.exception("request failed route=%s", route, extra=exchange.log_fields)
            await exchange.send_error(InternalError(exchange.request_id))

    async def _dispatch(self, exchange: Exchange) -> None:
        scope = exchange.scope
        path = scope["path"]
        self._authenticator.check(path, exchange.header(b"authorization"))
        handler = self._hot.get(path)
        if handler is None:
            await self._application(scope, exchange.receive, exchange.send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowedError(f"{path} takes POST, not {scope['method']}")
        body = await read_body(scope, exchange.receive, max_bytes=self._max_body_bytes)
        await self._run(handler(exchange, json_object(body)), exchange.receive)

    async def _run(self, work: Coroutine[Any, Any, None], receive: Receive) -> None:
        """Run a handler until it has ended or the client went away, whichever is first."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        watcher = asyncio.ensure_future(receive())  # the body is read: only a disconnect can come
        self._running.add(task)
        try:
            await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
            is_gone = not task.done()
            if is_gone:
                task.cancel()
                # Whatever it makes of the cancellation, there is nobody to hear of it.
                await asyncio.gather(task, return_exceptions=True)
        finally:
            self._running.discard(task)
            watcher.cancel()
            task.cancel()
        if is_gone:
            raise ClientDisconnectedError
        if task.cancelled():
            raise ShuttingDownError
        task.result()

    def _route(self, path: str) -> str:
        if path in self._routes:
            return path
        for prefix, name in FAMILIES.items():
            if path.startswith(prefix):
                return name
        return "other"


def request_id_of(scope: Scope) -> str:
    """Return the id that a request has, or the client's X-Request-Id if it is fit, or a new one."""
    if known := scope.get("request_id"):
        return str(known)
    given = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
    text = given.decode("latin-1")
    return text if is_request_id(text) else secrets.token_hex(16)


def with_request_id(application: Application) -> Application:
    """Return an application outside a gateway whose own answers have a request's id, too."""

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        own = (b"x-request-id", request_id_of(scope).encode())
        scope["request_id"] = own[1].decode()

        async def send_identified(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and all(key != own[0] for key, _ in message["headers"]):
                message["headers"] = [*message["headers"], own]
            await send(message)

        await application(scope, receive, send_identified)

    return identified


def _log_failure(error: ApiError, exchange: Exchange, route: str) -> None:
    # Never the message: it may quote what the client wrote. The client has it.
    is_fault = isinstance(error, UpstreamError | ReplicaLostError)
    logger.log(
        logging.WARNING if is_fault else logging.DEBUG,
        "request failed route=%s status=%d code=%s",
        route,
        error.status,
        error.code,
        extra=exchange.log_fields,
    )
