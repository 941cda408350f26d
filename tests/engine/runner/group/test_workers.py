"""Workers of a group start, fail, die and end with the process that started them."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from core_factories import HANG_TOKEN
from core_support import new_sequence, tokens
from quire_engine.config import EngineConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.errors import ConfigError, EngineDeadError, QuireError
from quire_engine.frontend.core_client import CoreClient
from quire_engine.runner.group.group_runner import GroupRunner, build_group
from quire_engine.runner.group.wire import frame, read_frame, write_all
from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.sampling_params import SamplingParams
from rank_support import FAILING_ID


def eventually(is_true: Callable[[], Any], *, within_s: float = 60.0) -> bool:
    """Wait until something is true; tell whether it became so in time."""
    deadline = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_broken(runner: GroupRunner) -> bool:
    try:
        runner.check_alive()
    except QuireError:
        return True
    return False


def test_a_killed_worker_fails_every_further_step_and_is_named() -> None:
    runner = build_group("rank_support:build", None, 2)
    [pid] = runner.worker_pids
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: is_broken(runner))

    with pytest.raises(QuireError, match="worker of rank 1 was killed by SIGKILL"):
        runner.launch(StepPlan())
    runner.close()


def test_closing_a_runner_ends_its_workers() -> None:
    runner = build_group("rank_support:build", None, 2)
    pids = runner.worker_pids
    assert all(map(is_alive, pids))

    runner.close()

    assert not any(map(is_alive, pids))


def test_a_step_that_fails_on_the_first_rank_leaves_none_that_could_follow() -> None:
    runner = build_group("rank_support:build", None, 2)
    with pytest.raises(MemoryError):
        runner.launch(StepPlan(num_tokens={FAILING_ID: 1}))
    with pytest.raises(QuireError, match="a step failed on the first rank"):
        runner.launch(StepPlan())
    runner.close()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        ("refuse", ConfigError, "^rank 1 does not like it$"),
        ("crash", QuireError, r"rank 1 could not start: Traceback(.|\n)*no such GPU"),
        ("die", QuireError, "worker of rank 1 ended with exit status 7"),
    ],
)
def test_a_rank_that_cannot_start_says_why(
    build: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_group(f"rank_support:{build}", None, 2)


def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    program = (
        "from quire_engine.runner.group.group_runner import build_group\n"
        "runner = build_group('rank_support:build', None, 2)\n"
        "print(*runner.worker_pids, flush=True)\n"
        "import time; time.sleep(300)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())

        parent.kill()

    assert eventually(lambda: not is_alive(pid))


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


async def start_core() -> CoreClient:
    return await CoreClient.start(
        EngineConfig(),
        prefix_model="test",
        eos_token_ids=[],
        runner_factory="rank_support:build_for_core",
    )


async def test_a_core_ends_when_a_worker_dies_while_it_idles() -> None:
    client = await start_core()
    [worker] = children_of(client.pid)

    os.kill(worker, signal.SIGKILL)

    with pytest.raises(EngineDeadError):
        async for _ in client.outputs():
            pass
    await client.close()


async def test_a_core_ends_when_a_worker_dies_in_a_step_that_then_never_ends() -> None:
    client = await start_core()
    [worker] = children_of(client.pid)
    client.send(new_sequence(0, [HANG_TOKEN, *tokens(4)]))
    await asyncio.sleep(0.5)

    os.kill(worker, signal.SIGKILL)

    with pytest.raises(EngineDeadError):
        async for _ in client.outputs():
            pass
    await client.close()


async def test_a_core_that_is_closed_takes_its_workers_along() -> None:
    client = await start_core()
    [worker] = children_of(client.pid)

    await client.close()

    assert eventually(lambda: not is_alive(worker))


def test_a_group_generates_what_its_first_rank_does() -> None:
    runner = build_group("rank_support:build", None, 2)
    core = EngineCore(EngineConfig(), runner, prefix_model="test", eos_token_ids=frozenset())
    core.add(new_sequence(0, tokens(30), max_tokens=5))

    heard = []
    while core.has_work:
        heard += [token for output in core.step().outputs for token in output.token_ids]
    core.check_alive()
    runner.close()

    assert len(heard) == 5


def test_plans_of_any_size_come_through_a_pipe_as_they_are() -> None:
    plan = StepPlan(
        dropped=[3],
        admitted=[
            AdmittedSequence(
                seq_id=4,
                token_ids=list(range(200_000)),
                num_prompt_tokens=200_000,
                block_ids=list(range(12_500)),
                num_computed_tokens=16,
                params=SamplingParams(temperature=0.5, logit_bias={3: 1.0}),
            )
        ],
        new_block_ids={5: [1, 2]},
        num_tokens={4: 8192, 5: 1},
    )
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: write_all(writer, frame(plan) + frame(StepPlan())))
    thread.start()

    got, then = read_frame(reader), read_frame(reader)
    thread.join()
    os.close(writer)

    assert (got, then) == (plan, StepPlan())
    with pytest.raises(EOFError):
        read_frame(reader)
    os.close(reader)


def test_a_runner_that_nobody_holds_any_more_ends_its_workers() -> None:
    runner = build_group("rank_support:build", None, 2)
    [pid] = runner.worker_pids

    del runner
    gc.collect()

    assert not is_alive(pid)
