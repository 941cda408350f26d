"""One connection to one engine process: what it is, its session, and what it says of itself.

The session is the connection: when it breaks, all else is given up and made anew. The other streams
are subscribed to again on their own.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire_engine.rpc import engine_pb2 as pb, engine_pb2_grpc
from quire_router.backoff import Backoff
from quire_router.generation import TokenizerFiles
from quire_router.prefix_index import KvGapError
from quire_router.session import ConnectionLostError, Session, describe
from quire_router.tokenizer_store import TokenizerStore

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
LOAD_INTERVAL_MS = 50

CHANNEL_OPTIONS = (
    # Load reports flow all the time, so pings only matter for a peer that vanished silently.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Reconnecting and retrying are ours: gRPC's backoff would keep a restarted engine waiting.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Engines are never behind the proxy that the environment may name.
    ("grpc.enable_http_proxy", 0),
)


class Observer(Protocol):
    """Who hears what a connection learns."""

    def on_connected(
        self, info: pb.ModelInfo, tokenizer: TokenizerFiles, session: Session
    ) -> None: ...

    def on_load(self, load: pb.Load) -> None: ...

    def on_health(self, *, is_serving: bool) -> None: ...

    def on_kv_subscribed(self) -> None: ...

    def on_kv_batch(self, batch: pb.KvEventBatch) -> None:
        """Take over a change of the prefix cache; KvGapError asks for a new subscription."""
        ...


async def run_connection(target: str, tokenizers: TokenizerStore, observer: Observer) -> None:
    """Connect and serve until the connection breaks.

    Raises:
        ConnectionLostError: always, unless cancelled; alone or in a group.
    """
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        stub = engine_pb2_grpc.EngineStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            info = await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=CONNECT_TIMEOUT_S)
            tokenizer = await tokenizers.fetch(stub)
        except grpc.aio.AioRpcError as error:
            raise ConnectionLostError(describe(error)) from None
        session = Session(observer.on_load)
        async with asyncio.TaskGroup() as tasks:
            observer.on_connected(info, tokenizer, session)
            tasks.create_task(_watch_load(stub, observer))
            tasks.create_task(_watch_health(channel, observer))
            if info.prefix_caching:
                tasks.create_task(_watch_kv_events(stub, observer))
            await session.run(stub)


async def _watch_load(stub: Any, observer: Observer) -> None:
    async for load in _resubscribed(
        "load", lambda: stub.WatchLoad(pb.WatchLoadRequest(interval_ms=LOAD_INTERVAL_MS))
    ):
        observer.on_load(load)


async def _watch_health(channel: Any, observer: Observer) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    async for response in _resubscribed(
        "health", lambda: stub.Watch(health_pb2.HealthCheckRequest())
    ):
        observer.on_health(is_serving=response.status == health_pb2.HealthCheckResponse.SERVING)


async def _watch_kv_events(stub: Any, observer: Observer) -> None:
    backoff = Backoff(first_s=0.1, max_s=2.0)
    while True:
        observer.on_kv_subscribed()
        call = stub.WatchKvEvents(pb.WatchKvEventsRequest())
        try:
            async for batch in call:
                observer.on_kv_batch(batch)
                backoff.reset()
        except grpc.aio.AioRpcError as error:
            logger.info("kv events ended error=%s", describe(error))
        except KvGapError as error:
            logger.warning("kv events lost error=%s", error)
        finally:
            call.cancel()
        await asyncio.sleep(backoff.next_s())


async def _resubscribed(name: str, subscribe: Any) -> AsyncIterator[Any]:
    """Yield what a server stream sends, over as many calls as it takes."""
    backoff = Backoff(first_s=0.1, max_s=2.0)
    while True:
        call = subscribe()
        try:
            async for message in call:
                yield message
                backoff.reset()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                logger.warning("the engine has no such stream stream=%s", name)
                return
            logger.debug("stream ended stream=%s error=%s", name, describe(error))
        finally:
            call.cancel()
        await asyncio.sleep(backoff.next_s())
