"""The parent of workers, with workers that do as a test says."""

import asyncio
import re
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving_processes import ENVIRONMENT, ending

CODE = """
import logging, sys, time
from quire_router.workers.memory import WorkerMemory
from quire_router.workers.supervisor import Supervisor
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
def work(number):
    {work}
    return 3
supervisor = Supervisor(WorkerMemory(1), work, stop_s={stop_s}, tick_s=0.02)
sys.exit(supervisor.run(lambda: None))
"""
PATIENCE_S = 60.0


@asynccontextmanager
async def supervising(work: str, stop_s: float = 0.3) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", CODE.format(work=work, stop_s=stop_s)),
        stdout=PIPE,
        env=ENVIRONMENT,
    )
    async with ending(process), asyncio.timeout(PATIENCE_S):
        yield process


async def lines(process: Process, beginning: str, num: int) -> list[str]:
    """Return the next lines that begin so."""
    assert process.stdout is not None
    found: list[str] = []
    while len(found) < num:
        line = (await process.stdout.readline()).decode()
        assert line, "the supervisor has ended"
        if line.startswith(beginning):
            found.append(line)
    return found


async def test_the_waits_for_a_worker_that_keeps_dying_grow() -> None:
    async with supervising("pass") as process:
        ended = await lines(process, "worker ended", 5)

        process.terminate()
        assert await process.wait() == 0

    waits = [float(found) for line in ended for found in re.findall(r"restart_s=([0-9.]+)", line)]
    assert waits[0] <= 0.2
    assert waits[-1] > 2 * waits[0]
    assert all("status=3" in line for line in ended)


async def test_a_worker_that_raises_is_started_again() -> None:
    async with supervising("raise RuntimeError('no')") as process:
        [failed] = await lines(process, "RuntimeError", 1)
        await lines(process, "worker started", 1)

    assert failed == "RuntimeError: no\n"


async def test_a_worker_that_hangs_is_killed_and_started_again() -> None:
    async with supervising("time.sleep(60)") as process:
        await lines(process, "worker hangs", 1)
        [ended] = await lines(process, "worker ended", 1)
        await lines(process, "worker started", 1)

    assert "status=-9" in ended


async def test_a_worker_that_does_not_stop_is_killed_in_the_end() -> None:
    async with supervising("[time.sleep(0.01) for _ in range(6000)]") as process:
        await lines(process, "worker started", 1)

        begun_at = time.monotonic()
        process.terminate()

        assert await process.wait() == 0
        assert time.monotonic() - begun_at >= 0.3


async def test_a_second_signal_of_one_kind_hurries_and_one_of_another_kind_does_not() -> None:
    work = "import signal; print('got', signal.sigwait({signal.SIGUSR1}), flush=True)"
    for signals, hurries in (((2, 15), False), ((15, 15), True), ((2, 2), True)):
        async with supervising(work, stop_s=2 * PATIENCE_S if hurries else 0.3) as process:
            await lines(process, "worker started", 1)
            first, second = signals
            process.send_signal(first)
            await lines(process, "stopping", 1)  # two that come at once may be heard as one
            process.send_signal(second)
            output, _ = await process.communicate()

        assert ("got" in output.decode()) is hurries
