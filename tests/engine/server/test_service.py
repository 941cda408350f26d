import asyncio
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
import tokenizers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine_client import (
    DEADLINE_S,
    abort,
    add,
    collect,
    generate,
    items_of,
    read_all,
    stub_of,
    until,
)
from quire_engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from quire_engine.core.messages import StepOutputs
from quire_engine.errors import ConfigError, EngineDeadError
from quire_engine.frontend.deltas import ProcessedStep
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.prefix import block_hashes, prefix_seed
from quire_engine.server.config import METRICS_OFF, ServerConfig
from quire_engine.server.engine_server import EngineServer
from quire_engine.testing import FakeEngine, FakeModel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def local(**values: Any) -> ServerConfig:
    return ServerConfig(host="127.0.0.1", port=0, metrics_port=METRICS_OFF, **values)


async def health_of(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def read_into(items: list[pb.SessionResponse.Item], session: Any) -> None:
    while True:
        items.extend((await session.read()).items)


async def until_health(address: str, status: int, service: str = "") -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await health_of(address, service) != status:  # noqa: ASYNC110 - over the wire
            await asyncio.sleep(0.02)


async def test_generate_streams_text_that_its_tokens_spell() -> None:
    async with FakeEngine(FakeModel(script="Paris.")) as engine, stub_of(engine.address) as stub:
        text, responses = await collect(stub.Generate(generate(max_tokens=20)))

        tokens = [token for r in responses for o in r.outputs for token in o.token_ids]
        assert text == "Paris."
        assert bytes(tokens[:-1]).decode() == text
        assert responses[0].prompt.num_prompt_tokens == len("Hello, fake engine")
        assert bytes(responses[0].prompt.prompt_token_ids).decode() == "Hello, fake engine"
        assert responses[-1].outputs[0].finish_reason == pb.FINISH_REASON_STOP
        assert responses[-1].usage.num_completion_tokens == 7
        await until(lambda: engine.num_used_blocks == 0)


async def test_final_only_is_one_response_with_everything() -> None:
    async with FakeEngine(FakeModel(script="Paris.")) as engine, stub_of(engine.address) as stub:
        request = generate(max_tokens=20)
        request.final_only = True

        text, responses = await collect(stub.Generate(request))

        assert (text, len(responses)) == ("Paris.", 1)
        assert responses[0].HasField("prompt")
        assert responses[0].HasField("usage")


async def test_n_completions_have_their_index_and_one_usage() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        _, responses = await collect(
            stub.Generate(generate(n=3, temperature=1.0, seed=1, max_tokens=5))
        )

        indexes = [output.index for r in responses for output in r.outputs]
        assert {index: indexes.count(index) for index in indexes} == {0: 5, 1: 5, 2: 5}
        assert [r.HasField("usage") for r in responses].count(True) == 1
        assert responses[-1].usage.num_completion_tokens == 15


async def test_logprobs_come_with_the_bytes_of_their_tokens() -> None:
    async with FakeEngine(FakeModel(script="ab")) as engine, stub_of(engine.address) as stub:
        _, responses = await collect(
            stub.Generate(generate("xyz", logprobs=2, prompt_logprobs=0, max_tokens=2))
        )

        first = responses[0].outputs[0].logprobs[0]
        assert len(first.token_ids) == len(first.logprobs) == len(first.ranks) == 3
        assert first.tokens[0] == b"a"
        prompt = responses[0].prompt.prompt_logprobs
        assert [position.tokens[0] for position in prompt] == [b"y", b"z"]


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (generate(temperature=3.0), grpc.StatusCode.INVALID_ARGUMENT, "temperature must be in"),
        (generate([300]), grpc.StatusCode.INVALID_ARGUMENT, "token id 300"),
        (generate(""), grpc.StatusCode.INVALID_ARGUMENT, "the prompt is empty"),
        (generate([1] * 200), grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 200 tokens"),
        (generate(logprobs=50), grpc.StatusCode.INVALID_ARGUMENT, "at most 20"),
    ],
    ids=["range", "vocabulary", "empty", "too long", "logprobs"],
)
async def test_a_bad_request_is_refused_with_value_and_limit(
    request_: pb.GenerateRequest, code: grpc.StatusCode, details: str
) -> None:
    config = EngineConfig(model=ModelConfig(max_model_len=128))
    async with FakeEngine(config=config) as engine, stub_of(engine.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub.Generate(request_))

        assert caught.value.code() is code
        assert details in str(caught.value.details())
        assert engine.num_in_flight == 0


async def test_cancelling_a_generate_call_frees_its_blocks() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        call = stub.Generate(generate(max_tokens=5000))
        await call.read()
        assert engine.num_in_flight == 1

        call.cancel()

        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)


async def test_a_session_sends_one_message_a_step_for_all_its_requests() -> None:
    async with FakeEngine(FakeModel(decode_ms=3)) as engine, stub_of(engine.address) as stub:
        engine.hang()
        session = stub.Session()
        for alias in range(1, 9):
            await session.write(add(alias, generate([alias] * 20, max_tokens=30)))
        await session.done_writing()
        await until(lambda: engine.num_in_flight == 8)
        engine.resume()

        messages = await read_all(session)

        items = [item for message in messages for item in message.items]
        tokens = dict.fromkeys(range(1, 9), 0)
        for item in items:
            tokens[item.alias] += len(item.response.outputs[0].token_ids)
        assert tokens == dict.fromkeys(range(1, 9), 30)
        assert len(messages) < len(items) / 4
        for message in messages:
            aliases = [item.alias for item in message.items]
            assert len(aliases) == len(set(aliases))
            assert message.load.epoch == engine.epoch
        assert [m.load.seq for m in messages] == sorted(m.load.seq for m in messages)
        assert messages[-1].load.num_generated_tokens == 240


async def test_a_refused_request_does_not_disturb_the_others() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(top_p=7.0)))
        await session.write(add(2, generate("text")))
        await session.done_writing()

        items = await items_of(session)

        errors = {item.alias: item.error for item in items if item.HasField("error")}
        assert list(errors) == [1]
        assert (errors[1].code, errors[1].param) == (3, "top_p")
        done = [item for item in items if item.response.HasField("usage")]
        assert [item.alias for item in done] == [2]
        assert bytes(items[1].response.prompt.prompt_token_ids) == b"text"


async def test_an_abort_ends_one_request_and_its_alias_can_be_used_again() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000)))
        await session.read()
        await session.write(abort(1, 99))
        await session.write(add(1, generate(max_tokens=3, request_id="second")))
        await session.done_writing()

        items = await items_of(session)

        assert items[-1].response.usage.num_completion_tokens == 3
        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)


async def test_the_end_of_a_session_aborts_all_that_it_carried() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        for alias in range(5):
            await session.write(add(alias, generate(max_tokens=5000)))
        await session.read()
        await until(lambda: engine.num_in_flight == 5)

        session.cancel()

        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)


async def test_a_closed_connection_aborts_too() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine:
        async with stub_of(engine.address) as stub:
            session = stub.Session()
            await session.write(add(1, generate(max_tokens=5000)))
            await session.read()

        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)


async def test_an_alias_in_use_ends_the_session() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000)))
        await session.write(add(1, generate(max_tokens=5000)))

        with pytest.raises(grpc.aio.AioRpcError, match="alias 1") as caught:
            await read_all(session)

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: engine.num_in_flight == 0)


async def test_a_request_id_in_use_is_refused() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000, request_id="same")))
        await session.read()
        with pytest.raises(grpc.aio.AioRpcError, match="'same' is in use"):
            await collect(stub.Generate(generate(request_id="same")))

        assert engine.num_in_flight == 1
        session.cancel()


async def test_a_reader_that_sleeps_is_ended_and_costs_no_memory() -> None:
    server = local(max_buffered_outputs=500)
    async with (
        FakeEngine(FakeModel(decode_ms=1), server=server) as engine,
        # A small window, so that little is on its way.
        stub_of(engine.address, **{"http2.lookahead_bytes": 1024, "http2.bdp_probe": 0}) as stub,
    ):
        session = stub.Session()
        for alias in range(8):
            await session.write(add(alias, generate([65] * 8, max_tokens=8000)))
        await until(lambda: engine.num_in_flight > 0)

        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(session)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 500 outputs" in str(caught.value.details())


async def test_a_full_queue_is_resource_exhausted() -> None:
    config = EngineConfig(scheduler=SchedulerConfig(max_num_seqs=1, max_num_queued_reqs=1))
    fake = FakeEngine(FakeModel(decode_ms=2), config=config)
    async with fake as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000)))
        await session.read()
        await session.write(add(2, generate(max_tokens=5000)))
        await session.write(add(3, generate(max_tokens=5000)))

        async with asyncio.timeout(DEADLINE_S):
            while not (errors := [i for i in (await session.read()).items if i.error.code]):
                pass

        assert (errors[0].alias, errors[0].error.code) == (3, 8)
        session.cancel()


async def test_get_model_info_and_tokenizer_are_what_a_router_needs() -> None:
    async with FakeEngine(served_model_name=("one", "two")) as engine:
        async with stub_of(engine.address) as stub:
            info = await stub.GetModelInfo(pb.GetModelInfoRequest())
            parts = [part async for part in stub.GetTokenizer(pb.GetTokenizerRequest())]

        assert list(info.served_model_names) == ["one", "two"]
        assert (info.block_size, info.num_blocks, info.epoch) == (16, 4096, engine.epoch)
        header, data = parts[0].header, b"".join(part.data for part in parts[1:])
        assert (header.num_bytes, header.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert tokenizers.Tokenizer.from_str(data.decode()).encode("ab").ids == [97, 98]
        assert "<|im_start|>" in header.chat_template
        assert json.loads(header.special_tokens)["eos_token"] == "<|endoftext|>"
        assert json.loads(header.generation_config) == {}


async def test_watch_load_speaks_at_once_and_then_again_and_again() -> None:
    async with FakeEngine(FakeModel(decode_ms=5)) as engine, stub_of(engine.address) as stub:
        loads = stub.WatchLoad(pb.WatchLoadRequest(interval_ms=10))
        first = await loads.read()
        assert (first.num_running, first.num_total_blocks) == (0, 4096)

        session = stub.Session()
        await session.write(add(1, generate(max_tokens=5000)))
        async with asyncio.timeout(DEADLINE_S):
            while (await loads.read()).num_running != 1:
                pass
        session.cancel()
        async with asyncio.timeout(DEADLINE_S):
            while (await loads.read()).num_running != 0:
                pass
        loads.cancel()


async def test_kv_events_carry_the_hashes_that_a_router_computes() -> None:
    prompt = list(range(64))
    hashes = block_hashes(prompt, 16, prefix_seed("fake"))
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        await collect(stub.Generate(generate(prompt, max_tokens=1)))
        events = stub.WatchKvEvents(pb.WatchKvEventsRequest())
        snapshot = await events.read()

        await collect(stub.Generate(generate(prompt[:32] + [200] * 32, max_tokens=1)))
        change = await events.read()

        assert set(hashes) <= set(snapshot.snapshot)
        assert change.seq == snapshot.seq + 1
        assert change.stored[0].parent == hashes[1]
        assert not set(change.stored[0].hashes) & set(hashes)
        assert change.epoch == snapshot.epoch == engine.epoch
        events.cancel()


async def test_a_prefix_reset_is_told_to_subscribers() -> None:
    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        await collect(stub.Generate(generate([7] * 64, max_tokens=1)))
        events = stub.WatchKvEvents(pb.WatchKvEventsRequest())
        known = set((await events.read()).snapshot)

        await stub.ResetPrefixCache(pb.ResetPrefixCacheRequest())
        change = await events.read()

        assert known
        assert change.cleared or set(change.removed) == known
        _, responses = await collect(stub.Generate(generate([7] * 64, max_tokens=1)))
        assert responses[0].prompt.num_cached_tokens == 0
        events.cancel()


async def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        call = stub.Generate(generate(max_tokens=100))
        await call.read()
        drain = stub.Drain(pb.DrainRequest())
        await until_health(engine.address, NOT_SERVING)
        assert await health_of(engine.address, "liveness") == SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="draining") as caught:
            await collect(stub.Generate(generate()))

        _, responses = await collect(call)

        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert responses[-1].usage.num_completion_tokens == 100
        assert (await drain).num_aborted == 0
        assert (await stub.WatchLoad(pb.WatchLoadRequest()).read()).draining


async def test_drain_aborts_what_takes_too_long() -> None:
    async with FakeEngine(FakeModel(decode_ms=5)) as engine, stub_of(engine.address) as stub:
        call = stub.Generate(generate(max_tokens=8000))
        await call.read()

        answer = await stub.Drain(pb.DrainRequest(timeout_ms=50))

        assert answer.num_aborted == 1
        with pytest.raises(grpc.aio.AioRpcError, match="shut down") as caught:
            await collect(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: engine.num_used_blocks == 0)


async def test_health_follows_the_steps_and_not_the_process() -> None:
    server = local(hang_timeout_s=0.2)
    async with FakeEngine(server=server) as engine, stub_of(engine.address) as stub:
        assert await health_of(engine.address) == SERVING
        assert await health_of(engine.address, "quire.engine.v1.Engine") == SERVING
        engine.hang()
        call = stub.Generate(generate())

        await until_health(engine.address, NOT_SERVING)
        await until_health(engine.address, NOT_SERVING, "liveness")
        engine.resume()
        await collect(call)
        await until_health(engine.address, SERVING)


async def test_the_death_of_the_core_fails_every_request_with_unavailable() -> None:
    async with FakeEngine(FakeModel(decode_ms=2)) as engine, stub_of(engine.address) as stub:
        session = stub.Session()
        for alias in (1, 2):
            await session.write(add(alias, generate(max_tokens=5000)))
        call = stub.Generate(generate(max_tokens=5000))
        await call.read()
        await until(lambda: engine.num_in_flight == 3)

        await engine.die()

        items: list[pb.SessionResponse.Item] = []
        with pytest.raises(grpc.aio.AioRpcError) as session_end:
            await read_into(items, session)
        with pytest.raises(grpc.aio.AioRpcError, match="SIGKILL") as call_end:
            await collect(call)
        assert {item.alias: item.error.code for item in items if item.error.code} == {1: 14, 2: 14}
        assert session_end.value.code() is grpc.StatusCode.UNAVAILABLE
        assert call_end.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_until_there_is_a_model_calls_are_unavailable() -> None:
    server = EngineServer(local())
    await server.start()
    try:
        assert await health_of(server.address) == NOT_SERVING
        assert await health_of(server.address, "liveness") == SERVING
        async with stub_of(server.address) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="loading") as caught:
                await collect(stub.Generate(generate()))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(grace_s=0)


async def test_reflection_lists_the_services() -> None:
    async with FakeEngine() as engine, grpc.aio.insecure_channel(engine.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()

        names = {service.name for service in answer.list_services_response.service}
        assert {"quire.engine.v1.Engine", "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_a_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await FakeEngine(server=ServerConfig(host="127.0.0.1", port=port)).start()


async def test_two_engines_cannot_share_a_port() -> None:
    async with FakeEngine() as engine:
        port = int(engine.address.rsplit(":", 1)[1])

        with pytest.raises(ConfigError, match="cannot listen"):
            await FakeEngine(server=ServerConfig(host="127.0.0.1", port=port)).start()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = ServerConfig(uds=str(path), metrics_port=METRICS_OFF)

    async with FakeEngine(server=server) as engine, stub_of(engine.address) as stub:
        await collect(stub.Generate(generate()))
        with pytest.raises(ConfigError, match="somebody does already"):
            await FakeEngine(server=server).start()


@pytest.mark.parametrize(
    ("name", "message"), [("missing/engine.sock", "no directory"), ("file", "no socket")]
)
async def test_a_socket_path_that_cannot_be_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "file").write_text("precious")
    server = ServerConfig(uds=str(tmp_path / name), metrics_port=METRICS_OFF)

    with pytest.raises(ConfigError, match=message):
        await FakeEngine(server=server).start()

    assert (tmp_path / "file").read_text() == "precious"


async def test_blocks_of_a_small_cache_are_never_lost_among_aborts() -> None:
    config = EngineConfig(cache=CacheConfig(num_gpu_blocks_override=40))
    async with FakeEngine(FakeModel(decode_ms=1), config=config) as engine:
        async with stub_of(engine.address) as stub:
            session = stub.Session()
            for alias in range(30):
                await session.write(add(alias, generate([alias] * 50, max_tokens=40)))
                if alias % 3 == 0:
                    await session.write(abort(alias))
            await session.done_writing()

            items = await items_of(session)

        finished = {item.alias for item in items if item.response.HasField("usage")}
        assert {alias for alias in range(30) if alias % 3} <= finished
        await until(lambda: engine.num_in_flight == 0 and engine.num_used_blocks == 0)


async def test_requests_after_a_death_are_refused_at_once() -> None:
    engine = FakeEngine()
    await engine.start()
    life = engine._life
    life.core.die("was killed by SIGKILL")
    with pytest.raises(EngineDeadError):
        await life.pump

    async with stub_of(engine.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub.Generate(generate()))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await until_health(engine.address, NOT_SERVING)
    await engine.stop()


async def test_a_bug_in_taking_in_a_step_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_step: StepOutputs) -> ProcessedStep:
        raise KeyError("a bug")

    async with FakeEngine() as engine, stub_of(engine.address) as stub:
        monkeypatch.setattr(engine._life.serving.engine._processor, "process", fail)

        with pytest.raises(grpc.aio.AioRpcError, match="KeyError") as caught:
            await collect(stub.Generate(generate()))

        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await until_health(engine.address, NOT_SERVING)
