"""What users see when an engine dies, and when the whole service is stopped."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from serve_process import Served, start_serve, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STREAMS = 50
WAIT_S = 120.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Served]:
    served = start_serve(tmp_path / "serve.log", "--replicas", "2")
    wait_until(lambda: num_ready(served) == 2, timeout_s=WAIT_S, what="both replicas ready")
    yield served
    served.stop()


def num_ready(served: Served) -> float:
    return served.metric("quire_router_replica_up")


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        for child in frontier:
            command = Path(f"/proc/{child}/cmdline")
            found[child] = command.read_bytes().replace(b"\0", b" ").decode()
    return found


def engine_pids(served: Served) -> list[int]:
    commands = descendants(served.process.pid)
    return sorted(pid for pid, command in commands.items() if "-m quire_engine" in command)


async def test_killing_an_engine_under_load_fails_no_new_request(pair: Served) -> None:
    client = openai.AsyncOpenAI(base_url=pair.api_url, api_key="unused", max_retries=0)
    model = (await client.models.list()).data[0].id
    started = asyncio.Semaphore(0)

    async def stream(number: int) -> str:
        """Return "done" for a whole stream, "error" for one that ended in an OpenAI error."""
        chunks = await client.completions.create(
            model=model,
            prompt=f"Story number {number}:",
            max_tokens=120,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        count = 0
        try:
            async for _ in chunks:
                count += 1
                if count == 2:
                    started.release()
        except openai.APIError:
            return "error"
        return "done"

    async def one_more(number: int) -> int:
        answer = await client.completions.create(
            model=model, prompt=f"After the fault {number}:", max_tokens=4
        )
        return len(answer.choices)

    streams = [asyncio.create_task(stream(number)) for number in range(NUM_STREAMS)]
    for _ in range(NUM_STREAMS):
        await started.acquire()
    victim = engine_pids(pair)[0]
    os.kill(victim, signal.SIGKILL)
    later = await asyncio.gather(*(one_more(number) for number in range(30)))
    ends = await asyncio.gather(*streams)

    assert later == [1] * 30
    assert set(ends) <= {"done", "error"}
    assert ends.count("done") > 0
    assert ends.count("error") > 0
    wait_until(lambda: num_ready(pair) == 2, timeout_s=WAIT_S, what="the killed engine rejoins")
    assert victim not in engine_pids(pair)
    assert await one_more(99) == 1
    await client.close()


def test_one_interrupt_drains_everything_and_leaves_no_process(tmp_path: Path) -> None:
    served = start_serve(tmp_path / "serve.log")
    children = descendants(served.process.pid)
    assert children

    assert served.stop() == 0

    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in served.log.read_text()


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    served = start_serve(tmp_path / "serve.log")
    children = descendants(served.process.pid)

    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()

    def alive() -> list[int]:
        return [pid for pid in children if Path(f"/proc/{pid}").exists()]

    wait_until(lambda: not alive(), timeout_s=WAIT_S, what="children end with their supervisor")
    assert alive() == []
