"""Replays of synthetic workloads on fake engines with a cost model, over real gRPC."""

import asyncio
import random
from contextlib import AsyncExitStack

from pool_support import dispatching, read, start
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.dispatcher import PoolDispatcher

NUM_SESSIONS = 18
NUM_TURNS = 5


async def converse(dispatcher: PoolDispatcher, seed: int) -> None:
    """Play one client: each turn repeats the talk so far and adds to it."""
    rng = random.Random(seed)
    talk: list[int] = []
    for _ in range(NUM_TURNS):
        talk += [rng.randrange(256) for _ in range(rng.randrange(60, 140))]
        talk += await read(start(dispatcher, list(talk), max_tokens=8))
        await asyncio.sleep(rng.random() * 0.02)


async def hit_rate(policy: str) -> float:
    """Return the share of prompt tokens that three replicas found cached."""
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=2048))
    model = FakeModel(prefill_tokens_per_s=200_000.0, decode_ms=1.0)
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(FakeEngine(model, config=config)) for _ in range(3)
        ]
        dispatcher = await stack.enter_async_context(
            dispatching(*(engine.address for engine in engines), routing_policy=policy)
        )
        await asyncio.gather(*(converse(dispatcher, seed) for seed in range(NUM_SESSIONS)))
        counts = [replica.counts for replica in dispatcher._pool.replicas]
        assert all(count.num_dispatched for count in counts)
        num_cached = sum(count.num_cached_tokens for count in counts)
        return num_cached / sum(count.num_prompt_tokens for count in counts)


async def test_conversations_find_their_prefix_more_often_than_with_least_requests() -> None:
    aware, blind = await hit_rate("cost"), await hit_rate("least-requests")
    assert aware > blind + 0.1
    assert aware > 0.55
