"""The routes that are not hot: models, tokenizing, health, metrics."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from quire_router.bodies import json_object
from quire_router.errors import (
    ModelNotFoundError,
    NoReplicaError,
    NotReadyError,
    ShuttingDownError,
)
from quire_router.exchange import STREAM_HEADERS, read_body
from quire_router.exposition import exposition
from quire_router.openai.models import model_cards
from quire_router.openai.tokenize import DetokenizeRequest, TokenizeRequest
from quire_router.replica_feed import ReplicaFeed
from quire_router.sampling import check_vocabulary
from quire_router.service import Service

ROUTES = frozenset(
    {
        "/",
        "/v1/models",
        "/v1/replicas",
        "/v1/replicas/events",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/readyz",
        "/ping",
        "/version",
        "/metrics",
    }
)
"""Paths that metrics name; whatever else clients try is counted as one."""


def build_routes(service: Service, registry: CollectorRegistry) -> APIRouter:
    """Return all of them."""
    router = APIRouter(redirect_slashes=False)
    _add_model_routes(router, service)
    _add_replica_routes(router, ReplicaFeed(service.dispatcher.reports, service.lifecycle))
    _add_token_routes(router, service)
    _add_health_routes(router, service, registry)
    return router


def _add_model_routes(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": model_cards(service.model(None))})

    @router.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        cards = model_cards(service.model(None))
        found = next((card for card in cards if card["id"] == name), None)
        if found is None:
            raise ModelNotFoundError(name)
        return _json(found)


def _add_replica_routes(router: APIRouter, feed: ReplicaFeed) -> None:
    @router.get("/v1/replicas")
    async def show_replicas() -> Response:
        return Response(feed.snapshot(), media_type="application/json")

    @router.get("/v1/replicas/events")
    async def follow_replicas() -> Response:
        headers = {key.decode(): value.decode() for key, value in STREAM_HEADERS}
        return StreamingResponse(feed.events(), headers=headers)


def _add_token_routes(router: APIRouter, service: Service) -> None:
    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        wanted = TokenizeRequest.parse(await _body(request, service))
        model = service.model(wanted.model)
        files = await service.tokenizer()
        text = wanted.prompt
        if wanted.chat is not None:
            text = service.renderer.render(wanted.chat, files)
        token_ids = await service.tokenization.encode(
            text, add_special_tokens=wanted.add_special_tokens
        )
        names = [service.tokenization.token_name(token_id) for token_id in token_ids]
        return _json(
            {
                "count": len(token_ids),
                "max_model_len": model.max_model_len,
                "tokens": list(token_ids),
                "token_strs": names if wanted.return_token_strs else None,
            }
        )

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        wanted = DetokenizeRequest.parse(await _body(request, service))
        model = service.model(wanted.model)
        await service.tokenizer()
        check_vocabulary("tokens", max(wanted.tokens, default=0), model.vocab_size)
        return _json({"prompt": await service.tokenization.decode(wanted.tokens)})


def _add_health_routes(router: APIRouter, service: Service, registry: CollectorRegistry) -> None:
    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        return Response()

    @router.get("/ready")
    async def ready() -> Response:
        if not service.dispatcher.is_ready:
            raise NoReplicaError
        return _json({"ready": True})

    @router.get("/readyz")
    async def take_traffic() -> Response:
        # Not whether there is a replica: a router without any parks requests for a while and then
        # answers in OpenAI's form, which is more than clients get from a Service without endpoints.
        if service.lifecycle.is_stopping:
            raise ShuttingDownError
        if not service.dispatcher.is_synced:
            raise NotReadyError
        return _json({"ready": True})

    @router.get("/version")
    async def show_version() -> Response:
        return _json({"version": own_version()})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)


def own_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("quire")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


async def _body(request: Request, service: Service) -> dict[str, Any]:
    limit = service.config.max_body_bytes
    return json_object(await read_body(request.scope, request.receive, max_bytes=limit))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
