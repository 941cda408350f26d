# ruff: noqa: N802 - methods are named by the proto
"""The service of engine.proto on grpc.aio: every call, and how its errors become status."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from quire_engine.errors import QuireError
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.engine_pb2_grpc import EngineServicer
from quire_engine.server.async_engine import AsyncEngine
from quire_engine.server.kv_mirror import SubscriberTooSlowError
from quire_engine.server.metrics import EngineMetrics
from quire_engine.server.model_card import ModelCard
from quire_engine.server.outbox import ReaderTooSlowError
from quire_engine.server.session import GenerateCall, Session
from quire_engine.server.status import status_code

DEFAULT_LOAD_INTERVAL_MS = 50
MIN_LOAD_INTERVAL_MS = 5

METADATA = {
    "traceparent": "traceparent",
    "tracestate": "tracestate",
    "client_request_id": "x-request-id",
}
"""Fields of a GenerateRequest that a call's metadata may carry instead; a Session has many requests
and so none of its own."""

Context = Any
"""grpc.aio.ServicerContext, which has no types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the service serves, once the model is loaded."""

    engine: AsyncEngine
    card: ModelCard
    info: pb.ModelInfo
    metrics: EngineMetrics


class EngineService(EngineServicer):
    """Answers UNAVAILABLE until it is given something to serve."""

    def __init__(self, *, max_buffered_outputs: int) -> None:
        self._max_buffered = max_buffered_outputs
        self._serving: Serving | None = None
        self._sessions: set[Session] = set()
        self._closing = asyncio.Event()

    def serve(self, serving: Serving) -> None:
        self._serving = serving

    def close(self) -> None:
        """End every stream once its client has read what there is."""
        self._closing.set()
        if self._serving is None:
            return
        for session in self._sessions:
            session.end(self._serving.engine.error)
        self._serving.engine.mirror.end()

    async def Session(
        self, requests: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        serving = await self._ready(context)
        session = Session(serving.engine, max_buffered=self._max_buffered)
        self._sessions.add(session)
        reader = asyncio.create_task(session.read(requests))
        try:
            async for response in session.responses():
                yield response
        except (QuireError, ReaderTooSlowError) as error:
            await _abort(context, error)
        finally:
            reader.cancel()
            self._sessions.discard(session)
            session.close()

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        serving = await self._ready(context)
        call = GenerateCall(serving.engine, max_buffered=self._max_buffered)
        _take_metadata(request, context)
        try:
            await call.begin(request)
            async for response in call.responses():
                yield response
        except (QuireError, ReaderTooSlowError) as error:
            await _abort(context, error)
        finally:
            call.close()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.ModelInfo:
        return (await self._ready(context)).info

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        serving = await self._ready(context)
        for message in serving.card.tokenizer_messages():
            yield message

    async def WatchLoad(
        self, request: pb.WatchLoadRequest, context: Context
    ) -> AsyncIterator[pb.Load]:
        serving = await self._ready(context)
        interval_ms = request.interval_ms or DEFAULT_LOAD_INTERVAL_MS
        interval_s = max(interval_ms, MIN_LOAD_INTERVAL_MS) / 1000
        while not self._closing.is_set():
            yield serving.engine.load()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._closing.wait()

    async def WatchKvEvents(
        self, request: pb.WatchKvEventsRequest, context: Context
    ) -> AsyncIterator[pb.KvEventBatch]:
        mirror = (await self._ready(context)).engine.mirror
        subscription = mirror.subscribe()
        try:
            async for batch in subscription.batches():
                yield batch
        except SubscriberTooSlowError as error:
            await _abort(context, error)
        finally:
            mirror.unsubscribe(subscription)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        serving = await self._ready(context)
        timeout_s = request.timeout_ms / 1000 if request.timeout_ms else None
        return pb.DrainResponse(num_aborted=await serving.engine.drain(timeout_s))

    async def ResetPrefixCache(
        self, request: pb.ResetPrefixCacheRequest, context: Context
    ) -> pb.ResetPrefixCacheResponse:
        serving = await self._ready(context)
        try:
            await serving.engine.reset_prefix_cache()
        except QuireError as error:
            await _abort(context, error)
        return pb.ResetPrefixCacheResponse()

    async def _ready(self, context: Context) -> Serving:
        if self._serving is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is loading its model")
            raise AssertionError("abort raises")
        return self._serving


def _take_metadata(request: pb.GenerateRequest, context: Context) -> None:
    """Complete a request with what its call says of where it comes from."""
    metadata = dict(context.invocation_metadata() or ())
    for field, key in METADATA.items():
        value = metadata.get(key)
        if isinstance(value, str) and not getattr(request, field):
            setattr(request, field, value)


async def _abort(context: Context, error: Exception) -> NoReturn:
    await context.abort(status_code(error), str(error))
    raise AssertionError("abort raises")
