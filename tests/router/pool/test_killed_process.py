"""Engines as processes of their own, killed the hard way."""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pool_support import begin, dispatching, eventually, lengths, num_up, outcomes, start
from quire_router.errors import ReplicaLostError

ROOT = Path(__file__).parents[3]
PROMPT = list(range(1, 100))
SLOWLY_MS = 200
"""Of a step that a test must be in time for."""


async def launch(socket: Path, step_ms: int) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire_engine.testing", "--uds", str(socket)),
        *("--decode-ms", str(step_ms), "--metrics-port", "-1"),
        env={"PYTHONPATH": str(ROOT / "engine")},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


@asynccontextmanager
async def running(socket: Path, step_ms: int = 10) -> AsyncIterator[Process]:
    process = await launch(socket, step_ms)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_new_requests_never_fail_while_an_engine_is_killed_and_rejoins(
    tmp_path: Path,
) -> None:
    sockets = [tmp_path / "one.sock", tmp_path / "two.sock"]
    targets = [f"unix:{socket}" for socket in sockets]
    async with AsyncExitStack() as stack:
        doomed = await stack.enter_async_context(running(sockets[0], SLOWLY_MS))
        await stack.enter_async_context(running(sockets[1]))
        dispatcher = await stack.enter_async_context(dispatching(*targets))
        streams = [start(dispatcher, [n, *PROMPT], max_tokens=150) for n in range(50)]
        num_begun = dict(zip(streams, await asyncio.gather(*map(begin, streams)), strict=True))
        failing = [stream for stream in streams if stream.replica == targets[0]]
        living = [stream for stream in streams if stream.replica == targets[1]]

        doomed.kill()
        fresh = []
        for number in range(50):
            fresh.append(start(dispatcher, [101, number, *PROMPT]))
            await asyncio.sleep(0.004)

        assert min(len(failing), len(living)) > 10
        assert set(await lengths(fresh)) == {4}
        assert all(isinstance(end, ReplicaLostError) for end in await outcomes(failing))
        assert await lengths(living) == [150 - num_begun[stream] for stream in living]

        await stack.enter_async_context(running(sockets[0]))
        await eventually(lambda: num_up(dispatcher._registry) == 2)
        again = [start(dispatcher, [102, number, *PROMPT]) for number in range(10)]
        await lengths(again)
        assert {stream.replica for stream in again} == set(targets)


async def test_an_engine_that_is_stopped_dead_is_given_up_and_taken_back(tmp_path: Path) -> None:
    sockets = [tmp_path / "one.sock", tmp_path / "two.sock"]
    targets = [f"unix:{socket}" for socket in sockets]
    async with AsyncExitStack() as stack:
        stopped = await stack.enter_async_context(running(sockets[0], SLOWLY_MS))
        await stack.enter_async_context(running(sockets[1]))
        dispatcher = await stack.enter_async_context(
            dispatching(*targets, unresponsive_after_s=1.0, lost_after_s=4.0)
        )
        begun = [start(dispatcher, [n, *PROMPT], max_tokens=300) for n in range(8)]
        await asyncio.gather(*(stream.next() for stream in begun))
        failing = [stream for stream in begun if stream.replica == targets[0]]

        stopped.send_signal(signal.SIGSTOP)
        fresh = [start(dispatcher, [100, n, *PROMPT]) for n in range(8)]
        assert {stream.replica for stream in fresh} == set(targets)

        assert set(await lengths(fresh)) == {4}
        assert all(isinstance(end, ReplicaLostError) for end in await outcomes(failing))
        stopped.send_signal(signal.SIGCONT)
        await eventually(lambda: num_up(dispatcher._registry) == 2)
