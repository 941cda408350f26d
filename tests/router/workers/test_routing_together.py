"""Several dispatchers that share what they send, next to one, and to several that do not."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from pool_support import eventually, read, start
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.dispatcher import PoolDispatcher
from quire_router.exposition import exposition
from quire_router.pool_config import PoolConfig
from quire_router.prefix_index import PrefixIndex
from quire_router.replica import Replica
from quire_router.replica_account import Account
from quire_router.replica_view import ReplicaFacts
from quire_router.tokenizer_store import TokenizerStore
from quire_router.workers.memory import WorkerMemory
from quire_router.workers.share import WorkerShare
from quire_router.workers.views import WorkerView

NUM_ENGINES = 4
NUM_TALKS = 24
NUM_TURNS = 6
PROMPT = list(range(1, 200))


@dataclass(frozen=True, slots=True)
class Result:
    hit_rate: float
    """Share of prompt tokens that replicas found cached."""
    imbalance: float
    """Requests at the busiest replica by those at the mean one, over time."""


@asynccontextmanager
async def workers(
    engines: Sequence[FakeEngine], num: int, *, is_shared: bool = True
) -> AsyncIterator[list[PoolDispatcher]]:
    """Run the dispatchers of so many workers in this process."""
    memory = WorkerMemory(num)
    config = PoolConfig(replicas=tuple(engine.address for engine in engines))
    async with AsyncExitStack() as stack:
        dispatchers = []
        for number in range(num):
            share = WorkerShare(memory, number) if is_shared else None
            dispatcher = PoolDispatcher(config, CollectorRegistry(), share=share)
            await dispatcher.start()
            stack.push_async_callback(dispatcher.close)
            dispatchers.append(dispatcher)
        await eventually(lambda: all(num_ready(one) == len(engines) for one in dispatchers))
        yield dispatchers


def num_ready(dispatcher: PoolDispatcher) -> int:
    return sum(replica.state.value == "ready" for replica in dispatcher._pool.replicas)


async def converse(dispatchers: Sequence[PoolDispatcher], seed: int) -> None:
    """Play one client, each turn of whose talk reaches another worker."""
    rng = random.Random(seed)
    talk: list[int] = []
    for _ in range(NUM_TURNS):
        talk += [rng.randrange(256) for _ in range(rng.randrange(100, 300))]
        talk += await read(start(rng.choice(dispatchers), list(talk), max_tokens=8))
        await asyncio.sleep(rng.random() * 0.03)


async def conversations(num_workers: int, *, is_shared: bool = True) -> Result:
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=4096))
    model = FakeModel(prefill_tokens_per_s=60_000.0, decode_ms=2.0)
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(FakeEngine(model, config=config))
            for _ in range(NUM_ENGINES)
        ]
        running = workers(engines, num_workers, is_shared=is_shared)
        dispatchers = await stack.enter_async_context(running)
        imbalances: list[float] = []
        watch = asyncio.create_task(follow(engines, imbalances))
        await asyncio.gather(*(converse(dispatchers, seed) for seed in range(NUM_TALKS)))
        watch.cancel()
        counts = [replica.counts for one in dispatchers for replica in one._pool.replicas]
        cached = sum(count.num_cached_tokens for count in counts)
        prompts = sum(count.num_prompt_tokens for count in counts)
    return Result(cached / prompts, statistics.mean(imbalances))


async def follow(engines: Sequence[FakeEngine], imbalances: list[float]) -> None:
    while True:
        await asyncio.sleep(0.005)
        active = [engine.num_in_flight for engine in engines]
        if sum(active) >= 2 * NUM_ENGINES:
            imbalances.append(max(active) / statistics.mean(active))


async def test_four_workers_route_about_as_well_as_one() -> None:
    alone, together = await conversations(1), await conversations(4)

    assert together.hit_rate > alone.hit_rate - 0.1
    assert together.imbalance < alone.imbalance + 0.4


async def test_without_events_four_workers_know_what_one_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PrefixIndex, "apply", lambda *_: None)

    alone, together = await conversations(1), await conversations(4)
    apart = await conversations(4, is_shared=False)

    assert together.hit_rate > alone.hit_rate - 0.1
    assert together.hit_rate > apart.hit_rate + 0.1


async def test_a_burst_over_all_workers_is_spread_evenly() -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine()) for _ in range(NUM_ENGINES)]
        dispatchers = await stack.enter_async_context(workers(engines, 4))
        streams = [
            start(dispatchers[number // 4], [number, *PROMPT], max_tokens=50)
            for number in range(16)
        ]
        chosen = [stream.replica for stream in streams]
        await asyncio.gather(*map(read, streams))

    assert {chosen.count(engine.address) for engine in engines} == {4}


async def test_every_worker_shows_the_same() -> None:
    engine = FakeEngine(FakeModel(decode_ms=20))
    async with engine, workers([engine], 3) as dispatchers:
        await asyncio.gather(*(read(start(one, PROMPT)) for one in dispatchers for _ in range(2)))
        running = [start(one, PROMPT, max_tokens=900) for one in dispatchers]
        await asyncio.gather(*(stream.next() for stream in running))

        def seen(name: str) -> set[float | None]:
            labels = {"replica": engine.address}
            return {one._registry.get_sample_value(name, labels) for one in dispatchers}

        assert seen("quire_router_replica_requests_total") == {9.0}
        assert seen("quire_router_replica_in_flight") == {3.0}
        assert seen("quire_router_replica_up") == {1.0}
        assert seen("quire_router_replica_connections_total") == {3.0}
        await eventually(lambda: seen("quire_router_replica_running") == {3.0})
        shown = [one.reports for one in dispatchers]
        await eventually(lambda: all(len(reports.requests()) == 9 for reports in shown))
        assert shown[0].requests() == shown[1].requests() == shown[2].requests()
        assert len({request.number for request in shown[0].requests()}) == 9
        assert [report.in_flight for reports in shown for report in reports.replicas()] == [3] * 3
        for stream in running:
            stream.cancel()


async def test_a_replica_is_up_when_all_that_serve_can_send_to_it() -> None:
    memory = WorkerMemory(2)
    shares = [WorkerShare(memory, number) for number in range(2)]
    async with FakeEngine() as engine:
        dispatchers = [
            PoolDispatcher(PoolConfig(replicas=(engine.address,)), CollectorRegistry(), share=share)
            for share in shares
        ]
        await dispatchers[0].start()
        shares[0].serve()
        await eventually(lambda: dispatchers[0].is_ready)
        assert up(dispatchers[0]) == up(dispatchers[1]) == 1

        shares[1].serve()
        shares[1].publish(
            WorkerView(replicas=[ReplicaFacts.of(lost(engine.address))]),
            is_synced=True,
            num_ready=0,
        )
        assert not dispatchers[0].is_ready
        assert up(dispatchers[0]) == up(dispatchers[1]) == 0

        await dispatchers[1].start()
        await eventually(lambda: dispatchers[0].is_ready and up(dispatchers[1]) == 1)
        for dispatcher in dispatchers:
            await dispatcher.close()


def up(dispatcher: PoolDispatcher) -> float:
    name = "quire_router_replica_up"
    families = {family.name: family for family in dispatcher._registry.collect()}
    return sum(sample.value for sample in families[name].samples)


def lost(address: str) -> Replica:
    """Return a replica that was never reached."""
    return Replica(address, PoolConfig(), TokenizerStore(), lambda _: None, Account())


async def test_requests_are_numbered_in_the_order_of_their_decisions() -> None:
    async with FakeEngine() as engine, workers([engine], 3) as dispatchers:
        for number in (0, 0, 0, 0, 1, 2, 1, 1, 0):
            await read(start(dispatchers[number], PROMPT))
        reports = dispatchers[2].reports
        await eventually(lambda: len(reports.requests()) == 9)

    numbers = [request.number for request in reports.requests()]
    assert numbers == sorted(numbers)
    assert [number % 3 for number in numbers] == [0, 0, 0, 0, 1, 2, 1, 1, 0]


async def test_what_changed_is_told_of_all_workers() -> None:
    async with FakeEngine() as engine, workers([engine], 2) as dispatchers:
        reports = dispatchers[0].reports
        await read(start(dispatchers[1], PROMPT))
        await eventually(lambda: [one.outcome for one in reports.requests()] == ["done"])
        seen = reports.revision

        await read(start(dispatchers[0], PROMPT))
        await read(start(dispatchers[1], PROMPT))
        await eventually(lambda: len(reports.requests(seen)) == 2)

        assert reports.revision > seen
        assert reports.requests(reports.revision) == []


async def test_series_of_a_replica_go_when_no_worker_has_it_any_more() -> None:
    async with FakeEngine() as one, FakeEngine() as two, workers([one, two], 2) as dispatchers:
        for dispatcher in dispatchers:
            await asyncio.gather(*(read(start(dispatcher, [n, *PROMPT])) for n in range(4)))

        def shows(dispatcher: PoolDispatcher) -> bool:
            return two.address in exposition(dispatcher._registry).decode()

        def count() -> float:
            name = "quire_router_replica_requests_total"
            registry = dispatchers[0]._registry
            return registry.get_sample_value(name, {"replica": two.address}) or 0.0

        before = count()
        leave(dispatchers[0], one)
        await eventually(lambda: len(dispatchers[0]._pool.replicas) == 1)
        assert all(map(shows, dispatchers))
        assert count() == before

        leave(dispatchers[1], one)
        await eventually(lambda: not any(map(shows, dispatchers)))


def leave(dispatcher: PoolDispatcher, engine: FakeEngine) -> None:
    """Have a worker's discovery name one engine alone."""
    dispatcher._pool._wanted[0] = frozenset({engine.address})
    dispatcher._pool._reconcile()
