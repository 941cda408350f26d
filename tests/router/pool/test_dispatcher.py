import asyncio
import hashlib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pool_support import begin, dispatching, eventually, lengths, read, start
from quire_engine.server.config import ServerConfig
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.discovery import DnsDiscovery
from quire_router.dispatcher import PoolDispatcher
from quire_router.errors import NoReplicaError
from quire_router.pool_config import PoolConfig

PROMPT = list(range(1, 50))


async def test_a_generation_yields_tokens_until_usage() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        generation = start(dispatcher, PROMPT, max_tokens=7)

        token_ids = await read(generation)

        assert len(token_ids) == 7
        assert generation.replica == engine.address


async def test_many_generations_share_one_stream_and_do_not_mix() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        prompts = [[number, *PROMPT] for number in range(1, 41)]
        alone = [await read(start(dispatcher, prompt)) for prompt in prompts]

        together = await asyncio.gather(*(read(start(dispatcher, p)) for p in prompts))

        assert together == alone


async def test_the_model_and_its_tokenizer_are_known_and_stay_known() -> None:
    async with (
        FakeEngine(served_model_name=("fake", "alias")) as engine,
        dispatching(engine.address) as dispatcher,
    ):
        [model] = dispatcher.models()
        assert list(model.served_model_names) == ["fake", "alias"]
        files = dispatcher.tokenizer()
        assert hashlib.sha256(files.data).hexdigest() == files.sha256
        assert files.chat_template

        await engine.stop()
        await eventually(lambda: not dispatcher.models())

        assert dispatcher.served() == model
        assert dispatcher.tokenizer() == files


async def test_before_any_replica_there_is_no_model() -> None:
    async with dispatching("unix:/nonexistent/engine.sock", ready=0) as dispatcher:
        assert dispatcher.served() is None
        assert not dispatcher.models()
        with pytest.raises(NoReplicaError):
            dispatcher.tokenizer()


async def test_a_replica_of_another_model_is_left_alone() -> None:
    async with (
        FakeEngine(served_model_name=("one",)) as one,
        dispatching(one.address) as dispatcher,
        FakeEngine(served_model_name=("two",)) as two,
    ):
        dispatcher._pool._wanted[1] = frozenset({two.address})
        dispatcher._pool._reconcile()
        await eventually(lambda: len(dispatcher.models()) == 2)

        streams = [start(dispatcher, [n, *PROMPT]) for n in range(6)]
        await lengths(streams)

        assert {stream.replica for stream in streams} == {one.address}


async def test_unix_sockets_are_targets_too(tmp_path: Path) -> None:
    server = ServerConfig(uds=str(tmp_path / "engine.sock"), metrics_port=-1)
    async with FakeEngine(server=server) as engine, dispatching(engine.address) as dispatcher:
        assert engine.address.startswith("unix:")
        assert len(await read(start(dispatcher, PROMPT))) == 4


async def test_requests_that_share_a_prefix_go_where_it_is_cached() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        dispatching(one.address, two.address) as dispatcher,
    ):
        system = list(range(1, 200)) * 5
        first = start(dispatcher, system)
        await read(first)

        for number in range(8):
            stream = start(dispatcher, [*system, number])
            response = await stream.next()
            assert stream.replica == first.replica
            assert response.prompt.num_cached_tokens > 900


async def test_a_burst_of_one_prompt_is_kept_together_before_any_event_comes() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        dispatching(one.address, two.address) as dispatcher,
    ):
        prompt = list(range(200)) * 20
        burst = [start(dispatcher, [*prompt, number]) for number in range(3)]
        assert len({stream.replica for stream in burst}) == 1
        await lengths(burst)


async def test_salted_prompts_share_nothing() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        dispatching(one.address, two.address) as dispatcher,
    ):
        prompt = list(range(200)) * 5
        await read(start(dispatcher, prompt, cache_salt="a"))
        other = start(dispatcher, prompt, cache_salt="b")
        assert (await other.next()).prompt.num_cached_tokens == 0
        [replica] = [r for r in dispatcher._pool.replicas if r.address == other.replica]
        assert replica.counts.num_expected_cached_tokens == 0


async def test_idle_equal_replicas_share_unrelated_prompts() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        FakeEngine() as three,
        dispatching(one.address, two.address, three.address) as dispatcher,
    ):
        served = []
        for number in range(9):
            stream = start(dispatcher, [number, *PROMPT])
            await read(stream)
            served.append(stream.replica)
    assert all(served.count(engine.address) == 3 for engine in (one, two, three))


async def test_final_only_requests_come_in_one_response() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        stream = start(dispatcher, PROMPT, max_tokens=20, final_only=True)
        response = await stream.next()
        assert len(response.outputs[0].token_ids) == 20
        assert response.HasField("usage")


async def test_replicas_follow_their_name() -> None:
    answers: list[set[str]] = [{"127.0.0.1"}]

    async def resolve(host: str, port: int) -> set[str]:
        return answers[-1]

    async with FakeEngine(FakeModel(decode_ms=10.0)) as engine:
        port = int(engine.address.rsplit(":", 1)[1])
        dispatcher = PoolDispatcher(PoolConfig(), CollectorRegistry())
        source = DnsDiscovery("engines", port, interval_s=0.02, resolve=resolve)
        dispatcher._pool._discoveries.append(source)
        await dispatcher.start()
        await eventually(lambda: dispatcher.models())
        running = start(dispatcher, PROMPT, max_tokens=1000)
        num_begun = await begin(running)

        answers.append(set())
        await eventually(lambda: not dispatcher.models())

        assert len(dispatcher._pool.replicas) == 1
        engine.slow_down(0)
        assert await lengths([running]) == [1000 - num_begun]
        await eventually(lambda: not dispatcher._pool.replicas)

        answers.append({"127.0.0.1"})
        assert len(await read(start(dispatcher, PROMPT))) == 4
        await dispatcher.close()
