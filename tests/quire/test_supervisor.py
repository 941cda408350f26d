"""The supervisor with children that are real processes and do next to nothing."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.child import Child, ChildFailedError, ChildSpec, describe_status, restart_delay_s
from quire.console import Console, JsonConsole, LineSplitter
from quire.supervisor import Supervisor
from serve_process import wait_until

WAIT_S = 60.0

OBEDIENT = """
    import pathlib, signal, sys, time
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    def end(*_):
        with (folder / "ended").open("a") as log: log.write(name + "\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    print("hello from", name)
    with (folder / f"{name}.pids").open("a") as log: log.write(f"{__import__('os').getpid()}\\n")
    while True: time.sleep(0.05)
"""
STUBBORN = """
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    with (folder / f"{name}.pids").open("a") as log: log.write(f"{__import__('os').getpid()}\\n")
    while True: time.sleep(0.05)
"""
PARENT = """
    import os, pathlib, subprocess, sys, time
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / f"{name}.grandchild").write_text(str(child.pid))
    with (folder / f"{name}.pids").open("a") as log: log.write(f"{os.getpid()}\\n")
    while True: time.sleep(0.05)
"""


def spec(folder: Path, name: str, script: str) -> ChildSpec:
    async def is_ready() -> bool:
        return bool(pids(folder, name))

    command = (sys.executable, "-c", textwrap.dedent(script), str(folder), name)
    return ChildSpec(name=name, command=command, is_ready=is_ready)


def failing(name: str, status: int) -> ChildSpec:
    async def is_ready() -> bool:
        return False

    script = f"import sys; sys.stderr.write('bad configuration\\n'); sys.exit({status})"
    return ChildSpec(name=name, command=(sys.executable, "-c", script), is_ready=is_ready)


def pids(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, timeout_s=WAIT_S, what=what)


class Running:
    """A supervisor under test, its output and what it announced."""

    def __init__(self, router: ChildSpec, *engines: ChildSpec, timeout_s: float = WAIT_S) -> None:
        self.out = io.StringIO()
        self.num_announced = 0
        console = Console(self.out, is_terminal=False)
        self.supervisor = Supervisor(
            Child(router, console),
            [Child(engine, console) for engine in engines],
            console,
            on_ready=self._announce,
            shutdown_timeout_s=timeout_s,
        )
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def log(self) -> str:
        return self.out.getvalue()

    async def _announce(self) -> None:
        self.num_announced += 1


def test_restarts_wait_longer_each_time_up_to_a_limit() -> None:
    assert [restart_delay_s(number) for number in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 30.0]


def test_an_end_is_described_in_words() -> None:
    assert describe_status(3) == "ended with status 3"
    assert describe_status(-9) == "killed by SIGKILL"


def test_lines_are_cut_at_newlines_wherever_the_pieces_end() -> None:
    splitter = LineSplitter()

    pieces = [splitter.feed(piece) for piece in (b"on", b"e\ntwo\nth", b"ree")]

    assert pieces == [[], [("one", True), ("two", True)], []]
    assert splitter.finish() == [("three", True)]
    assert splitter.finish() == []


def test_a_progress_bar_is_one_line_that_changes() -> None:
    splitter = LineSplitter()

    assert splitter.feed(b"\r10%") == [("10%", False)]
    assert splitter.feed(b"\r20%\r30%") == [("30%", False)]
    assert splitter.feed(b"\r100%\ndone\n") == [("100%", True), ("done", True)]


def test_progress_shows_on_a_terminal_only() -> None:
    terminal, pipe = io.StringIO(), io.StringIO()
    for out, is_terminal in ((terminal, True), (pipe, False)):
        console = Console(out, is_terminal=is_terminal)
        console.relay("engine", "10%", final=False)
        console.relay("engine", "100%", final=True)

    assert pipe.getvalue() == "engine | 100%\n"
    assert "10%" in terminal.getvalue()


async def test_output_is_prefixed_and_readiness_timed_and_announced(tmp_path: Path) -> None:
    router, engine = spec(tmp_path, "router", OBEDIENT), spec(tmp_path, "engine", OBEDIENT)
    running = Running(router, engine)
    await until(lambda: running.num_announced == 1, "announced")

    os.kill(os.getpid(), signal.SIGINT)

    assert await running.task == 0
    assert "router | hello from router\n" in running.log
    assert "engine: ready after" in running.log
    assert "Traceback" not in running.log


async def test_the_router_ends_before_the_engines(tmp_path: Path) -> None:
    names = ("router", "engine 0", "engine 1")
    running = Running(*(spec(tmp_path, name, OBEDIENT) for name in names))
    await until(lambda: all(pids(tmp_path, name) for name in names), "all started")

    os.kill(os.getpid(), signal.SIGTERM)

    assert await running.task == 0
    ended = (tmp_path / "ended").read_text().splitlines()
    assert ended[0] == "router"
    assert sorted(ended) == sorted(names)


async def test_a_killed_engine_is_started_again(tmp_path: Path) -> None:
    running = Running(spec(tmp_path, "router", OBEDIENT), spec(tmp_path, "engine", OBEDIENT))
    await until(lambda: running.num_announced == 1, "announced")

    os.kill(pids(tmp_path, "engine")[0], signal.SIGKILL)

    await until(lambda: len(pids(tmp_path, "engine")) == 2, "started again")
    os.kill(os.getpid(), signal.SIGINT)
    assert await running.task == 0
    assert "engine: killed by SIGKILL; starting it again in 0.5 s" in running.log
    assert len(pids(tmp_path, "router")) == 1


async def test_a_configuration_error_ends_everything_with_its_message(tmp_path: Path) -> None:
    running = Running(spec(tmp_path, "router", OBEDIENT), failing("engine", 2))

    assert await running.task == 2
    assert "engine | bad configuration\n" in running.log
    assert "engine cannot start (exit status 2)" in running.log
    assert not any(is_alive(pid) for pid in pids(tmp_path, "router"))


async def test_an_engine_that_never_starts_is_given_up_after_some_tries(tmp_path: Path) -> None:
    running = Running(spec(tmp_path, "router", OBEDIENT), failing("engine", 7))

    assert await running.task == 1
    assert running.log.count("engine | bad configuration\n") == 3


async def test_a_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    children = (spec(tmp_path, "router", STUBBORN), spec(tmp_path, "engine", OBEDIENT))
    running = Running(*children, timeout_s=3600.0)
    await until(lambda: running.num_announced == 1, "announced")
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: "again to stop at once" in running.log, "draining")

    os.kill(os.getpid(), signal.SIGINT)

    assert await running.task == 130
    assert not any(is_alive(pid) for pid in pids(tmp_path, "router") + pids(tmp_path, "engine"))


async def test_a_child_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    child = Child(spec(tmp_path, "engine", STUBBORN), Console(io.StringIO()))
    task = asyncio.create_task(child.run())
    await child.ready.wait()

    await child.stop(0.2)
    await task

    assert not is_alive(pids(tmp_path, "engine")[0])


async def test_what_a_child_started_is_swept_up_with_it(tmp_path: Path) -> None:
    child = Child(spec(tmp_path, "engine", PARENT), Console(io.StringIO()))
    task = asyncio.create_task(child.run())
    await child.ready.wait()
    grandchild = int((tmp_path / "engine.grandchild").read_text())
    assert is_alive(grandchild)

    await child.stop(WAIT_S)
    await task

    await until(lambda: not is_alive(grandchild), "grandchild swept up")


async def test_stopping_during_the_pause_before_a_restart_is_immediate(tmp_path: Path) -> None:
    child = Child(failing("engine", 1), Console(io.StringIO()))
    task = asyncio.create_task(child.run())

    await child.stop(WAIT_S)

    await task


async def test_a_child_that_cannot_start_names_itself(tmp_path: Path) -> None:
    child = Child(failing("engine 3", 2), Console(io.StringIO()))

    with pytest.raises(ChildFailedError, match="engine 3 cannot start") as caught:
        await child.run()

    assert caught.value.status == 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"""
        import asyncio, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]}
        from test_supervisor import OBEDIENT, Running, spec
        folder = Path({str(tmp_path)!r})
        async def main():
            await Running(spec(folder, "router", OBEDIENT), spec(folder, "engine", OBEDIENT)).task
        asyncio.run(main())
    """
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    names = ("router", "engine")
    wait_until(lambda: all(pids(tmp_path, name) for name in names), timeout_s=WAIT_S, what="start")

    supervisor.kill()
    supervisor.wait()

    children = [pid for name in names for pid in pids(tmp_path, name)]
    wait_until(lambda: not any(map(is_alive, children)), timeout_s=WAIT_S, what="children ended")
    assert not (tmp_path / "ended").exists()


def test_with_json_every_line_is_an_object_that_says_whose_it_is() -> None:
    out = io.StringIO()
    console = JsonConsole(out)

    console.say("Starting")
    console.relay("engine 0", '{"level": "warning", "message": "lost"}', final=True)
    console.relay("engine 0", "10%", final=False)
    console.relay("router", "{not json", final=True)

    said, logged, other = map(json.loads, out.getvalue().splitlines())
    assert (said["process"], said["message"]) == ("serve", "Starting")
    assert logged == {"level": "warning", "message": "lost", "process": "engine 0"}
    assert (other["process"], other["message"]) == ("router", "{not json")
