"""The router's ASGI application: FastAPI for everything that is not hot, the gateway around it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from quire_engine.rpc.collector import NO_ENVIRONMENT
from quire_router.auth import Authenticator
from quire_router.chat import ChatHandler
from quire_router.completions import CompletionHandler
from quire_router.config import RouterConfig
from quire_router.errors import (
    ApiError,
    BadRequestError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    NotSupportedError,
)
from quire_router.exchange import Receive, Scope, Send, error_headers
from quire_router.gateway import Application, Gateway, with_request_id
from quire_router.generation import Dispatcher
from quire_router.http_metrics import HttpMetrics, SloTargets
from quire_router.lifecycle import Lifecycle
from quire_router.page_routes import build_page_routes
from quire_router.prompts import PromptRenderer
from quire_router.routes import ROUTES, build_routes, own_version
from quire_router.service import Service
from quire_router.tokenization import Tokenization
from quire_router.tracing import check_tracing, make_tracer

# Routes of OpenAI's and vLLM's that a client may try here.
NOT_SERVED = (
    *("/v1/assistants", "/v1/audio", "/v1/batches", "/v1/embeddings", "/v1/files"),
    *("/v1/fine_tuning", "/v1/images", "/v1/messages", "/v1/moderations", "/v1/realtime"),
    *("/v1/rerank", "/v1/responses", "/v1/score", "/v1/threads", "/v1/uploads"),
    *("/v1/vector_stores", "/v1/videos", "/classify", "/embed", "/pooling", "/rerank", "/score"),
)


class RouterApp:
    """The application, as an ASGI server calls it while it is `running()`."""

    def __init__(
        self,
        config: RouterConfig,
        dispatcher: Dispatcher,
        registry: CollectorRegistry,
        *,
        api_keys: tuple[str, ...] = (),
        environment: Mapping[str, str] = NO_ENVIRONMENT,
    ) -> None:
        """`registry` holds the metrics of both sides; `api_keys` empty lets everybody in.

        `environment` may say how to send traces.

        Raises:
            ConfigError: the chat template of the configuration cannot be used, or traces cannot
                be sent.
        """
        check_tracing(config)
        self._config = config
        self._environment = environment
        service = self._service = _service(config, dispatcher, registry)
        self._gateway = Gateway(
            _fastapi(service, registry),
            hot={
                "/v1/chat/completions": ChatHandler(service),
                "/v1/completions": CompletionHandler(service),
            },
            routes=ROUTES,
            authenticator=Authenticator(api_keys),
            metrics=service.metrics,
            lifecycle=service.lifecycle,
            max_body_bytes=config.max_body_bytes,
            logs_access=config.access_log,
        )
        self._application: Application = self._gateway
        if config.allowed_origins:
            self._application = _with_cors(self._gateway, config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have replicas looked for, and everything closed in the end. Around all requests."""
        service = self._service
        # Not before: a thread comes with it, which does not outlive a fork.
        tracer = self._gateway.tracer = make_tracer(self._config, self._environment)
        await service.dispatcher.start()
        lag = asyncio.create_task(service.metrics.watch_loop_lag())
        try:
            yield
        finally:
            lag.cancel()
            await service.dispatcher.close()
            service.tokenization.close()
            await asyncio.to_thread(tracer.close)

    @property
    def is_ready(self) -> bool:
        """Whether a replica can take requests now."""
        return self._service.dispatcher.is_ready

    def begin_shutdown(self) -> None:
        """Turn readiness off and have clients reconnect; requests are still served."""
        self._service.lifecycle.stop()

    def abort_all(self) -> None:
        """End every generation in flight with an error, for a shutdown that cannot wait."""
        self._gateway.abort_all()


def _service(config: RouterConfig, dispatcher: Dispatcher, registry: CollectorRegistry) -> Service:
    targets = SloTargets.from_ms(first_token_ms=config.slo_ttft_ms, per_token_ms=config.slo_itl_ms)
    metrics = HttpMetrics(registry, targets=targets, version=own_version())
    tokenization = Tokenization(
        num_threads=config.tokenizer_threads,
        cache_bytes=config.tokenizer_cache_bytes,
        metrics=metrics,
    )
    return Service(
        config=config,
        dispatcher=dispatcher,
        tokenization=tokenization,
        renderer=PromptRenderer(config),
        metrics=metrics,
        lifecycle=Lifecycle(),
    )


def _fastapi(service: Service, registry: CollectorRegistry) -> FastAPI:
    # The hot paths are not FastAPI's, so a schema made by it would leave out what matters.
    app = FastAPI(
        title="Quire router",
        openapi_url=None,
        redirect_slashes=False,
    )
    app.include_router(build_routes(service, registry))
    if service.config.page:
        app.include_router(build_page_routes())
    app.add_exception_handler(ApiError, _render)
    app.add_exception_handler(HTTPException, _render)
    app.add_exception_handler(RequestValidationError, _render)
    app.add_exception_handler(Exception, _render)
    return app


def _with_cors(application: Application, origins: tuple[str, ...]) -> Application:
    cors: Application = CORSMiddleware(
        application,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    return with_request_id(cors)


async def _render(request: Request, error: Exception) -> Response:
    """Answer an error of FastAPI's routes as those of the hot paths are answered."""
    known = _api_error(request, error)
    headers = {key.decode(): value.decode() for key, value in error_headers(known)}
    body = orjson.dumps(known.body())
    return Response(body, known.status, headers, media_type="application/json")


def _api_error(request: Request, error: Exception) -> ApiError:
    path = request.url.path
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=404) if path.startswith(NOT_SERVED):
            return NotSupportedError(f"{path} is not served here")
        case HTTPException(status_code=404):
            return NotFoundError(f"there is nothing at {path}")
        case HTTPException(status_code=405):
            return MethodNotAllowedError(f"{path} does not take {request.method}")
        case HTTPException() | RequestValidationError():
            return BadRequestError(str(error))
        case _:
            return InternalError(request.scope.get("request_id", ""))
