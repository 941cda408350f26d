import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from pool_support import begin, dispatching, eventually, lengths, outcome, outcomes, read, start
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.errors import InvalidRequestError, QueueFullError, RequestError
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.errors import (
    ApiError,
    BadRequestError,
    NoReplicaError,
    OverloadedError,
    ReplicaLostError,
    UpstreamError,
)

PROMPT = list(range(1, 100))
NOBODY = "unix:/nonexistent/engine.sock"
SLOW = FakeModel(decode_ms=10.0)


@contextlib.asynccontextmanager
async def engines(num: int, model: FakeModel = SLOW) -> AsyncIterator[list[FakeEngine]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeEngine(model)) for _ in range(num)]


def by_address(running: list[FakeEngine], address: str) -> FakeEngine:
    return next(engine for engine in running if engine.address == address)


async def test_a_killed_engine_ends_what_it_had_begun_and_nothing_else() -> None:
    async with (
        engines(2) as (one, two),
        dispatching(one.address, two.address) as dispatcher,
    ):
        streams = [start(dispatcher, [n, *PROMPT], max_tokens=1000) for n in range(50)]
        begun = {stream: await begin(stream) for stream in streams}
        doomed = [stream for stream in streams if stream.replica == one.address]
        others = [stream for stream in streams if stream.replica == two.address]
        assert doomed
        assert others

        await one.stop()
        two.slow_down(0)
        fresh = [start(dispatcher, [n, *PROMPT], max_tokens=3) for n in range(100, 130)]

        assert set(await lengths(fresh)) == {3}
        assert all(isinstance(end, ReplicaLostError) for end in await outcomes(doomed))
        assert await lengths(others) == [1000 - begun[stream] for stream in others]


async def test_what_a_killed_engine_had_not_begun_is_answered_by_another() -> None:
    async with (
        FakeEngine() as doomed,
        dispatching(doomed.address) as dispatcher,
        FakeEngine() as other,
    ):
        doomed.hang()
        waiting = [start(dispatcher, [n, *PROMPT]) for n in range(5)]
        await eventually(lambda: doomed.num_in_flight == 5)
        dispatcher._pool._wanted[1] = frozenset({other.address})
        dispatcher._pool._reconcile()

        await doomed.die()

        assert set(await lengths(waiting)) == {4}
        assert {stream.replica for stream in waiting} == {other.address}


async def test_requests_wait_for_a_restart_when_all_are_down() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        await engine.stop()
        waiting = [start(dispatcher, [n, *PROMPT]) for n in range(10)]
        await eventually(lambda: all(stream.replica == "" for stream in waiting))

        await engine.start()

        assert set(await lengths(waiting)) == {4}


async def test_the_wait_for_a_replica_is_bounded() -> None:
    async with dispatching(NOBODY, ready=0, replica_wait_s=0.2) as dispatcher:
        began = time.monotonic()
        with pytest.raises(NoReplicaError) as caught:
            await read(start(dispatcher, PROMPT))
        assert time.monotonic() - began >= 0.2
        assert caught.value.retry_after_s


async def test_a_restarted_engine_rejoins_with_an_empty_index() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        await read(start(dispatcher, PROMPT))
        [replica] = dispatcher._pool.replicas
        await eventually(lambda: len(replica.index) > 0)
        epoch = replica.info.epoch

        await engine.restart()

        await eventually(lambda: replica.info.epoch != epoch and replica.state.value == "ready")
        assert len(replica.index) == 0
        assert len(await read(start(dispatcher, PROMPT))) == 4


async def test_a_gap_in_cache_events_leads_to_a_new_snapshot() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        [replica] = dispatcher._pool.replicas
        await eventually(lambda: replica.index.mode.value == "exact")

        engine.drop_kv_events()
        await read(start(dispatcher, [1, *PROMPT]))
        await read(start(dispatcher, [2, *PROMPT]))

        await eventually(lambda: replica.counts.num_kv_subscriptions == 2)
        await eventually(lambda: replica.index.mode.value == "exact")
        hashes = [
            start(dispatcher, [n, *PROMPT]).hashes(16, replica.prefix_seed("")) for n in (1, 2)
        ]
        assert [replica.index.num_cached(known) for known in hashes] == [6, 6]


async def test_a_draining_engine_gets_nothing_new_and_finishes_what_it_has() -> None:
    async with (
        engines(2) as running,
        dispatching(*(engine.address for engine in running)) as dispatcher,
    ):
        old = start(dispatcher, PROMPT, max_tokens=1000)
        num_begun = await begin(old)
        draining = by_address(running, old.replica)

        drained = asyncio.create_task(draining.drain())
        await asyncio.sleep(0)
        fresh = [start(dispatcher, PROMPT, max_tokens=2) for _ in range(10)]

        assert set(await lengths(fresh)) == {2}
        assert {stream.replica for stream in fresh}.isdisjoint({draining.address})
        draining.slow_down(0)
        assert len(await read(old)) == 1000 - num_begun
        assert await drained == 0


async def test_a_hung_engine_gets_nothing_new_and_gives_back_what_it_had_not_begun() -> None:
    async with (
        engines(2) as running,
        dispatching(
            *(engine.address for engine in running), unresponsive_after_s=1.0, lost_after_s=60.0
        ) as dispatcher,
    ):
        [first, second] = dispatcher._pool.replicas
        hung = by_address(running, first.address)
        first.last_chosen, second.last_chosen = 0, 1
        hung.hang()
        stuck = start(dispatcher, PROMPT, max_tokens=3)
        assert stuck.replica == hung.address

        # What the engine's own watch says once no step ends for long enough.
        first.on_health(is_serving=False)

        assert len(await read(stuck)) == 3
        assert stuck.replica == second.address
        assert start(dispatcher, PROMPT).replica == second.address
        hung.resume()


async def test_a_replica_that_is_silent_for_long_is_given_up() -> None:
    async with (
        FakeEngine(SLOW) as engine,
        dispatching(engine.address, unresponsive_after_s=1.0, lost_after_s=2.0) as dispatcher,
    ):
        begun = start(dispatcher, PROMPT, max_tokens=8000)
        await begun.next()
        [replica] = dispatcher._pool.replicas
        replica.on_load = lambda load: None  # type: ignore[method-assign]  # deaf from here on
        replica._session._on_load = lambda load: None  # type: ignore[union-attr]  # likewise

        assert isinstance(await outcome(begun), ReplicaLostError)
        await eventually(lambda: engine.num_in_flight == 0)


async def test_a_wrong_request_is_refused_once_and_hurts_nobody() -> None:
    async with (
        engines(2) as running,
        dispatching(*(engine.address for engine in running)) as dispatcher,
    ):
        for engine in running:
            engine.refuse(InvalidRequestError("no such thing", param="prompt"))

        for number in range(20):
            with pytest.raises(BadRequestError, match="no such thing") as caught:
                await read(start(dispatcher, [number, *PROMPT]))
            assert caught.value.param == "prompt"

        replicas = dispatcher._pool.replicas
        assert sum(replica.counts.num_dispatched for replica in replicas) == 20
        assert not any(replica.breaker.is_open for replica in replicas)


async def test_a_full_engine_is_passed_over() -> None:
    async with (
        engines(2) as (full, free),
        dispatching(full.address, free.address) as dispatcher,
    ):
        full.refuse(QueueFullError(7, 7))
        streams = [start(dispatcher, [n, *PROMPT], max_tokens=2) for n in range(10)]
        assert set(await lengths(streams)) == {2}
        assert {stream.replica for stream in streams} == {free.address}


async def test_when_all_are_full_the_client_is_told_to_come_back() -> None:
    async with (
        engines(2) as running,
        dispatching(*(engine.address for engine in running)) as dispatcher,
    ):
        for engine in running:
            engine.refuse(QueueFullError(7, 7))
        with pytest.raises(OverloadedError) as caught:
            await read(start(dispatcher, PROMPT))
        assert caught.value.retry_after_s
        assert not any(replica.breaker.is_open for replica in dispatcher._pool.replicas)


async def test_cancelling_frees_the_engine_at_every_stage() -> None:
    async with FakeEngine(SLOW) as engine, dispatching(engine.address) as dispatcher:
        queued = start(dispatcher, [1, *PROMPT], max_tokens=1000)
        queued.cancel()
        begun = start(dispatcher, [2, *PROMPT], max_tokens=1000)
        await begun.next()
        begun.cancel()
        begun.cancel()

        await eventually(lambda: engine.num_in_flight == 0)
        await eventually(lambda: engine.num_used_blocks == 0)
        [replica] = dispatcher._pool.replicas
        assert replica.load.num_own == 0
        await eventually(lambda: replica.load.num_active == 0)
        assert replica.load.queued_tokens == 0


async def test_cancelling_what_waits_for_a_replica_ends_its_wait() -> None:
    async with dispatching(NOBODY, ready=0) as dispatcher:
        waiting = start(dispatcher, PROMPT)
        reader = asyncio.create_task(outcome(waiting))
        await asyncio.sleep(0)

        waiting.cancel()

        assert isinstance(await reader, ApiError)
        assert not dispatcher._parked


async def test_a_slow_reader_gets_everything_in_one_piece() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        expected = await read(start(dispatcher, PROMPT, max_tokens=300))
        slow = start(dispatcher, PROMPT, max_tokens=300)
        await eventually(lambda: engine.num_in_flight == 0)
        await eventually(lambda: slow.is_ended)

        response = await slow.next()

        assert list(response.outputs[0].token_ids) == expected
        assert response.HasField("usage")
        assert response.HasField("prompt")


async def test_closing_the_dispatcher_ends_what_is_in_flight() -> None:
    async with FakeEngine(SLOW) as engine:
        async with dispatching(engine.address) as dispatcher:
            begun = start(dispatcher, PROMPT, max_tokens=2000)
            await begun.next()
        assert isinstance(await outcome(begun), ReplicaLostError)
        await eventually(lambda: engine.num_in_flight == 0)


async def test_a_small_cache_shows_in_the_index() -> None:
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=16))
    async with FakeEngine(config=config) as engine, dispatching(engine.address) as dispatcher:
        [replica] = dispatcher._pool.replicas
        for number in range(10):
            await read(start(dispatcher, [number, *PROMPT]))
        await eventually(lambda: len(replica.index._exact) <= 16)


async def test_a_lone_engine_that_pauses_keeps_its_requests() -> None:
    async with (
        FakeEngine(SLOW) as engine,
        dispatching(engine.address, unresponsive_after_s=0.3) as dispatcher,
    ):
        [replica] = dispatcher._pool.replicas
        engine.hang()
        waiting = [start(dispatcher, [n, *PROMPT]) for n in range(5)]
        replica.on_health(is_serving=False)
        await eventually(lambda: replica.state.value == "unresponsive")
        late = start(dispatcher, PROMPT)

        engine.resume()
        replica.on_health(is_serving=True)

        assert set(await lengths([*waiting, late])) == {4}
        assert replica.counts.num_dispatched == 6


async def test_an_engine_that_fails_everything_is_left_alone_for_a_while() -> None:
    async with (
        engines(2) as (bad, good),
        dispatching(
            bad.address, good.address, breaker_failures=3, breaker_open_s=60.0
        ) as dispatcher,
    ):
        bad.refuse(RequestError("a bug"))
        streams = []
        for number in range(20):
            streams.append(start(dispatcher, [number, *PROMPT], max_tokens=2))
            await read(streams[-1])

        [broken] = [r for r in dispatcher._pool.replicas if r.address == bad.address]
        assert broken.breaker.is_open
        assert broken.counts.num_dispatched == 3
        assert {stream.replica for stream in streams} == {good.address}


async def test_the_failure_of_the_only_engine_is_told() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        engine.refuse(RequestError("a bug"))
        with pytest.raises(UpstreamError, match="a bug"):
            await read(start(dispatcher, PROMPT))


async def test_after_closing_nothing_is_begun() -> None:
    async with FakeEngine() as engine:
        async with dispatching(engine.address) as dispatcher:
            pass
        with pytest.raises(NoReplicaError, match="shutting down"):
            await read(start(dispatcher, PROMPT))
