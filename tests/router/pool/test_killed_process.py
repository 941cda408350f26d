"""Engines as processes of their own, killed the hard way."""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pool_support import dispatching, eventually, lengths, num_up, outcomes, start
from quire_router.errors import ReplicaLostError

ROOT = Path(__file__).parents[3]
PROMPT = list(range(1, 100))


async def launch(socket: Path) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire_engine.testing", "--uds", str(socket)),
        *("--decode-ms", "10", "--metrics-port", "-1"),
        env={"PYTHONPATH": str(ROOT / "engine")},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


@asynccontextmanager
async def running(socket: Path) -> AsyncIterator[Process]:
    process = await launch(socket)
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
        doomed, _ = [await stack.enter_async_context(running(socket)) for socket in sockets]
        dispatcher = await stack.enter_async_context(dispatching(*targets))
        streams = [start(dispatcher, [n, *PROMPT], max_tokens=150) for n in range(50)]
        await asyncio.gather(*(stream.next() for stream in streams))
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
        assert set(await lengths(living)) == {149}

        await stack.enter_async_context(running(sockets[0]))
        await eventually(lambda: num_up(dispatcher._registry) == 2)
        again = [start(dispatcher, [102, number, *PROMPT]) for number in range(10)]
        await lengths(again)
        assert {stream.replica for stream in again} == set(targets)


async def test_an_engine_that_is_stopped_dead_is_given_up_and_taken_back(tmp_path: Path) -> None:
    sockets = [tmp_path / "one.sock", tmp_path / "two.sock"]
    targets = [f"unix:{socket}" for socket in sockets]
    async with AsyncExitStack() as stack:
        stopped, _ = [await stack.enter_async_context(running(socket)) for socket in sockets]
        dispatcher = await stack.enter_async_context(
            dispatching(*targets, unresponsive_after_s=0.5, lost_after_s=1.5)
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
