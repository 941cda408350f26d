"""The core in a process of its own, with its client: real processes, real sockets."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from core_factories import HANG_TOKEN
from core_support import expected_tokens, new_sequence, tokens
from quire_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from quire_engine.core.messages import FinishReason, SequenceOutput
from quire_engine.errors import ConfigError, EngineDeadError
from quire_engine.frontend.core_client import CoreClient

CONFIG = EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=64, max_num_queued_reqs=200))


async def start(factory: str = "build", config: EngineConfig = CONFIG) -> CoreClient:
    return await CoreClient.start(
        config,
        prefix_model="test",
        eos_token_ids=[],
        runner_factory=f"core_factories:{factory}",
    )


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[CoreClient]:
    client = await start()
    try:
        yield client
    finally:
        await client.close()


async def outputs_of(client: CoreClient, *seq_ids: int) -> dict[int, list[SequenceOutput]]:
    """Return all outputs of these sequences, once the last has ended."""
    heard: dict[int, list[SequenceOutput]] = {seq_id: [] for seq_id in seq_ids}
    waiting = set(seq_ids)
    async for step in client.outputs():
        for output in step.outputs:
            heard.setdefault(output.seq_id, []).append(output)
            if output.finish_reason is not None:
                waiting.discard(output.seq_id)
        if not waiting:
            break
    return heard


async def eventually(is_true: Callable[[], Any], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def state_of(pid: int) -> str | None:
    """Return the letter that proc(5) gives a process: "T" is stopped, "Z" a zombie."""
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return status.read_text().rpartition(")")[2].split()[0]
    return None


def is_running(pid: int) -> bool:
    return state_of(pid) not in (None, "Z")


async def test_a_core_process_generates_what_a_core_does() -> None:
    async with started() as client:
        ready = client.ready
        assert (ready.num_blocks, ready.block_size, ready.max_model_len) == (64, 16, 500)
        assert (ready.max_num_batched_tokens, ready.max_num_seqs) == (64, 64)
        assert (ready.device, ready.dtype) == ("cpu", "none")
        assert list(ready.load_report) == ["weights", "cache"]
        sequences = [new_sequence(i, tokens(20 * i + 1, i), max_tokens=8) for i in range(10)]
        client.send(*sequences)
        heard = await outputs_of(client, *range(10))
    for new in sequences:
        generated = [token for output in heard[new.seq_id] for token in output.token_ids]
        assert generated == expected_tokens(new)


async def test_refusals_come_back_as_outputs() -> None:
    async with started() as client:
        client.send(new_sequence(0, tokens(500)), new_sequence(1, [1]))
        heard = await outputs_of(client, 0, 1)
        (refused,) = heard[0]
    assert refused.finish_reason is FinishReason.ERROR
    assert refused.error_kind == "PromptTooLongError"
    assert "500" in (refused.error or "")
    assert heard[1][-1].finish_reason is FinishReason.LENGTH


async def test_an_aborted_sequence_is_heard_of_no_more() -> None:
    async with started() as client:
        client.send(new_sequence(0, tokens(10), max_tokens=450))
        client.abort([0])
        client.send(new_sequence(1, tokens(10, 1)))
        heard = await outputs_of(client, 1)
        assert all(output.finish_reason is None for output in heard.get(0, []))
        client.send(new_sequence(2, [5], max_tokens=1))
        async for step in client.outputs():
            if any(output.seq_id == 2 for output in step.outputs):
                assert step.stats.num_used_blocks == 0
                break


async def test_a_core_whose_work_was_aborted_is_idle() -> None:
    async with started() as client:
        client.send(new_sequence(0, tokens(10), max_tokens=450))
        client.abort([0])
        await eventually(lambda: not client.is_stepping)


async def test_a_reset_is_answered_and_told() -> None:
    async with started() as client:
        client.send(new_sequence(0, tokens(100)))
        await outputs_of(client, 0)
        await client.reset_prefix_cache()
        step = await anext(client.outputs())
        assert step.kv_events is not None
        assert step.kv_events.cleared


async def test_an_idle_core_is_heard_of_and_a_hung_one_is_not() -> None:
    async with started() as client:
        await eventually(lambda: client.last_progress_s > 0.3)
        await eventually(lambda: client.last_progress_s < 0.3)
        await eventually(lambda: not client.is_stepping)
        client.send(new_sequence(0, [HANG_TOKEN]))
        await eventually(lambda: client.last_progress_s > 1.5)
        assert client.is_stepping
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await outputs_of(client, 0)


async def test_a_killed_core_is_noticed_by_all_who_wait() -> None:
    async with started() as client:
        # A running core may obey the reset before it is killed.
        os.kill(client.pid, signal.SIGSTOP)
        await eventually(lambda: state_of(client.pid) == "T")
        client.send(new_sequence(0, [1]))
        reader = asyncio.create_task(outputs_of(client, 0))
        reset = asyncio.create_task(client.reset_prefix_cache())
        await asyncio.sleep(0)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            await reader
        with pytest.raises(EngineDeadError):
            await reset
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            client.send(new_sequence(1, [1]))
        client.abort([0])
        assert client.error is not None


async def test_closing_ends_the_stream_of_outputs_and_the_process() -> None:
    client = await start()
    os.kill(client.pid, signal.SIGINT)  # Ctrl-C is for the parent to interpret
    client.send(new_sequence(0, [1]))
    await outputs_of(client, 0)
    reader = asyncio.create_task(outputs_of(client, 1))
    await asyncio.sleep(0)
    await client.close()
    assert await reader == {1: []}
    assert not is_running(client.pid)
    await client.close()


async def test_a_refused_configuration_is_an_error_with_the_words_of_the_core() -> None:
    config = EngineConfig(cache=CacheConfig(block_size=32))
    with pytest.raises(ConfigError, match="block_size=32 is not to my taste"):
        await start("refuse", config)


@pytest.mark.parametrize(
    ("factory", "message"),
    [("crash", "RuntimeError: no such device"), ("die", "exit status 7"), ("nothing", "nothing")],
)
async def test_a_core_that_cannot_start_says_why(factory: str, message: str) -> None:
    with pytest.raises(EngineDeadError, match=message):
        await start(factory)


PARENT = """
import asyncio, os, sys
from quire_engine.config import EngineConfig
from quire_engine.core.messages import NewSequence
from quire_engine.frontend.core_client import CoreClient
from quire_engine.sampling_params import SamplingParams

async def main():
    client = await CoreClient.start(
        EngineConfig(), prefix_model="", eos_token_ids=[], runner_factory="core_factories:build"
    )
    if sys.argv[1] == "hung":
        client.send(NewSequence(seq_id=0, prompt_token_ids=[666], params=SamplingParams()))
    sys.stdout.write(f"{client.pid}\\n")
    sys.stdout.flush()
    await asyncio.sleep(300)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "hung"])
def test_a_core_does_not_outlive_its_parent_and_clears_its_sockets_away(
    state: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("t")  # short: socket paths are limited
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, state],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
    )
    with parent:
        assert parent.stdout is not None
        core_pid = int(parent.stdout.readline())
        assert is_running(core_pid)
        assert list(folder.iterdir())
        parent.kill()
    asyncio.run(eventually(lambda: not is_running(core_pid)))
    assert list(folder.iterdir()) == []
