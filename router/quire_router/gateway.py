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

from quire_router.auth import Authenticator
from quire_router.bodies import json_object
from quire_router.errors import (
    ApiError,
    InternalError,
    MethodNotAllowedError,
    ShuttingDownError,
)
from quire_router.exchange import (
    ClientDisconnectedError,
    Exchange,
    Receive,
    Scope,
    Send,
    read_body,
)
from quire_router.http_metrics import HttpMetrics
from quire_router.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Exchange, dict[str, Any]], Coroutine[Any, Any, None]]

FAMILIES = {"/v1/models/": "/v1/models/{id}", "/page/": "/page/{file}"}
"""Names that metrics have for paths by how they begin."""
MAX_REQUEST_ID_CHARS = 128
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
    ) -> None:
        """`hot` are the handlers of POST by path; `routes` the other paths that metrics name."""
        self._application = application
        self._hot = hot
        self._routes = routes | set(hot)
        self._authenticator = authenticator
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._max_body_bytes = max_body_bytes
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        request_id = scope["request_id"] = _request_id(scope)
        exchange = Exchange(scope, receive, send, request_id=request_id, lifecycle=self._lifecycle)
        route = self._route(scope["path"])
        # Autoscalers wake and size replicas by this: scrapes, probes and watchers must not count.
        num_generating = 1 if route in self._hot else 0
        self._metrics.in_flight.inc(num_generating)
        try:
            await self._answer(exchange, route)
        finally:
            self._metrics.in_flight.dec(num_generating)
            self._metrics.requests.labels(route, str(exchange.status)).inc()
            elapsed_s = time.monotonic() - exchange.started_at
            self._metrics.request_s.labels(route).observe(elapsed_s)

    def abort_all(self) -> None:
        """End every generation in flight with an error, for a shutdown that cannot wait."""
        for task in self._running:
            task.cancel()

    async def _answer(self, exchange: Exchange, route: str) -> None:
        try:
            await self._dispatch(exchange)
        except ApiError as error:
            await exchange.send_error(error)
        except ClientDisconnectedError:
            self._metrics.disconnects.labels(route).inc()
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        except Exception:
            logger.exception("request failed request_id=%s route=%s", exchange.request_id, route)
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


def _request_id(scope: Scope) -> str:
    """Return the client's X-Request-Id if it is fit to be returned, else a new one."""
    given = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
    if 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isascii():
        text: str = given.decode()
        if text.isprintable():
            return text
    return secrets.token_hex(16)
