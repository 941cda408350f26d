import asyncio
import threading
import time

import grpc
import pytest

from engine_client import abort, add, collect, generate, stub_of, until
from quire_engine.config import CacheConfig, EngineConfig
from quire_engine.errors import QueueFullError
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.testing import FakeEngine, FakeModel


async def test_it_stops_without_leaving_a_thread_behind() -> None:
    before = set(threading.enumerate())
    async with FakeEngine(), FakeEngine():
        cores = [thread for thread in threading.enumerate() if thread.name == "engine-core"]
        assert len(set(cores) - before) == 2

    assert not any(core.is_alive() for core in set(cores) - before)


async def test_the_same_prompt_gets_the_same_answer_from_every_engine() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        stub_of(one.address) as first,
        stub_of(two.address) as second,
    ):
        answers = [
            (await collect(stub.Generate(generate(max_tokens=30))))[0]
            for stub in (first, second, first)
        ]
        other, _ = await collect(first.Generate(generate("another prompt", max_tokens=30)))

    assert answers[0] == answers[1] == answers[2] != other


async def test_a_continued_generation_has_the_same_rest() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        prompt = list(b"Once upon a time")
        whole, _ = await collect(stub.Generate(generate(prompt, max_tokens=20)))

        rest, _ = await collect(
            stub.Generate(generate(prompt + list(whole[:8].encode()), max_tokens=12))
        )

    assert whole[8:] == rest


async def test_steps_take_the_time_that_the_model_says() -> None:
    model = FakeModel(decode_ms=10, prefill_tokens_per_s=10_000)
    async with FakeEngine(model) as engine, stub_of(engine.address) as stub:
        started_at = time.perf_counter()

        _, responses = await collect(stub.Generate(generate([65] * 1000, max_tokens=11)))

        assert time.perf_counter() - started_at >= 0.2
        usage = responses[-1].usage
        assert usage.time_to_first_token_s >= 0.1
        assert usage.time_to_first_token_s + usage.generation_s >= 0.2


async def test_a_cached_prefix_costs_nothing() -> None:
    slept_s: list[float] = []
    model = FakeModel(prefill_tokens_per_s=10_000)
    async with FakeEngine(model) as engine, stub_of(engine.address) as stub:
        engine._life.runner._sleep = slept_s.append
        prompt = [65] * 1600
        _, cold = await collect(stub.Generate(generate(prompt, max_tokens=1)))

        cold_s = sum(slept_s)
        _, warm = await collect(stub.Generate(generate(prompt, max_tokens=1)))

    num_cached = warm[0].prompt.num_cached_tokens
    assert (cold[0].prompt.num_cached_tokens, num_cached >= 1584) == (0, True)
    assert cold_s == pytest.approx(0.16)
    assert sum(slept_s) - cold_s == pytest.approx((1600 - num_cached) / 10_000)


async def test_a_hung_engine_goes_on_when_resumed() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        engine.hang()
        call = stub.Generate(generate(max_tokens=3))
        await until(lambda: engine.num_in_flight == 1)
        assert not call.done()

        engine.resume()

        assert len((await collect(call))[1]) == 3


async def test_a_slow_engine_takes_longer() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        engine.slow_down(10)

        _, responses = await collect(stub.Generate(generate(max_tokens=6)))

        usage = responses[-1].usage
        assert usage.time_to_first_token_s + usage.generation_s >= 0.1


async def test_refusals_can_be_ordered_and_taken_back() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        engine.refuse(QueueFullError(9, 9))
        with pytest.raises(grpc.aio.AioRpcError, match="9 requests are waiting") as caught:
            await collect(stub.Generate(generate()))
        engine.refuse(None)

        await collect(stub.Generate(generate()))

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_dropped_kv_events_leave_a_gap_in_the_numbers() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        events = stub.WatchKvEvents(pb.WatchKvEventsRequest())
        snapshot = await events.read()
        engine.drop_kv_events()

        await collect(stub.Generate(generate([1] * 32, max_tokens=1)))
        await collect(stub.Generate(generate([2] * 32, max_tokens=1)))

        assert (await events.read()).seq == snapshot.seq + 2
        events.cancel()


async def test_a_restart_has_the_same_address_a_new_epoch_and_an_empty_cache() -> None:
    async with FakeEngine() as engine:
        address, epoch = engine.address, engine.epoch
        async with stub_of(address) as stub:
            await collect(stub.Generate(generate([1] * 32, max_tokens=1)))

        await engine.die()
        await engine.start()

        assert engine.address == address
        assert engine.epoch != epoch
        async with stub_of(address) as stub:
            snapshot = await stub.WatchKvEvents(pb.WatchKvEventsRequest()).read()
            assert (snapshot.epoch, list(snapshot.snapshot)) == (engine.epoch, [])


async def test_a_dead_engine_refuses_connections() -> None:
    async with FakeEngine() as engine:
        await engine.die()

        async with stub_of(engine.address) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetModelInfo(pb.GetModelInfoRequest())

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_model_that_fails_step_after_step_kills_the_core() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:

        def fail() -> None:
            raise RuntimeError("out of luck")

        engine._life.runner.before_step = fail
        codes = []
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(stub.Generate(generate()))
            codes.append(caught.value.code())

    assert codes[:2] == [grpc.StatusCode.INTERNAL] * 2
    assert codes[2] is grpc.StatusCode.UNAVAILABLE


async def test_the_real_scheduler_preempts_when_blocks_run_out() -> None:
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=24))
    fake = FakeEngine(FakeModel(decode_ms=1), config=config)
    async with fake as engine, stub_of(engine.address) as stub:
        calls = [
            collect(stub.Generate(generate([number] * 40, max_tokens=200))) for number in range(4)
        ]
        results = await asyncio.gather(*calls)

    assert [responses[-1].usage.num_completion_tokens for _, responses in results] == [200] * 4
    assert sum(responses[-1].usage.num_preemptions for _, responses in results) > 0


async def test_aborted_requests_give_their_blocks_back_while_nothing_else_runs() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000)))
        await session.read()
        assert engine.num_used_blocks > 0

        await session.write(abort(1))

        await until(lambda: engine.num_used_blocks == 0)
