"""One supervised child process: started, watched until ready, started again when it ends."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from quire.console import Console, LineSplitter

USAGE_STATUS = 2
MAX_START_FAILURES = 3
MAX_RESTART_DELAY_S = 30.0
READY_POLL_S = 0.05
_READ_BYTES = 65536
_RELAY_TIMEOUT_S = 1.0


class ChildFailedError(Exception):
    """A child never became ready and will not; `status` is what the supervisor should end with."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} cannot start (exit status {status})")
        self.status = status if status == USAGE_STATUS else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run, and how to see that it is ready."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], Awaitable[bool]]
    before_start: Callable[[], None] = lambda: None
    """Removes what a killed predecessor left behind."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own."""


def restart_delay_s(num_failures: int) -> float:
    """Return how long to wait before the start after `num_failures` ends in a row: 0.5, 1, 2 ..."""
    return min(0.5 * 2.0 ** max(num_failures - 1, 0), MAX_RESTART_DELAY_S)


class Child:
    """Keeps one process running until `stop` or `kill`.

    The process leads a process group of its own, so that Ctrl-C in the terminal reaches only the
    supervisor, and so that whatever it started itself can be swept up with it.
    """

    def __init__(self, spec: ChildSpec, console: Console) -> None:
        self.spec = spec
        self._console = console
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self.ready = asyncio.Event()
        """Set once it has been ready for the first time."""

    async def run(self) -> None:
        """Run the process again and again; return after `stop` or `kill`.

        Raises:
            ChildFailedError: it ended without ever having been ready.
        """
        try:
            num_failures = 0
            while not self._stopping.is_set():
                status, was_ready = await self._run_once()
                if self._stopping.is_set():
                    break
                num_failures = 1 if was_ready else num_failures + 1
                await self._pause(status, num_failures)
        finally:
            self._ended.set()

    async def stop(self, grace_s: float) -> None:
        """Ask the process to end; kill it when it has not within `grace_s`."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), grace_s)
        except TimeoutError:
            self._console.say(f"{self.spec.name}: still running after {grace_s:g} s; killing it")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            _kill_group(self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run_once(self) -> tuple[int, bool]:
        self.spec.before_start()
        started_at = time.monotonic()
        output, process = await self._start()
        self._process = process
        if self._stopping.is_set():  # asked for while the process was being created
            self._signal(signal.SIGTERM)
        relay = asyncio.create_task(self._relay(output))
        watch = asyncio.create_task(self._watch(started_at))
        status = await process.wait()
        was_ready = watch.done()
        watch.cancel()
        # What it started holds the other end of the pipe: the relay ends only with that.
        _kill_group(process.pid)
        await asyncio.wait([relay], timeout=_RELAY_TIMEOUT_S)
        relay.cancel()
        await asyncio.gather(relay, watch, return_exceptions=True)
        return status, was_ready

    async def _start(self) -> tuple[int, asyncio.subprocess.Process]:
        # A pipe of our own: with asyncio's, `wait` may not return before the pipe is closed.
        output, child_output = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "quire.launcher", str(os.getpid()), *self.spec.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=child_output,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.spec.environment},
                process_group=0,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(child_output)
        return output, process

    async def _relay(self, output: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        splitter = LineSplitter()
        try:
            while data := await reader.read(_READ_BYTES):
                for text, final in splitter.feed(data):
                    self._console.relay(self.spec.name, text, final=final)
        finally:
            transport.close()
            for text, final in splitter.finish():
                self._console.relay(self.spec.name, text, final=final)

    async def _watch(self, started_at: float) -> None:
        while True:
            if await self.spec.is_ready():
                break
            await asyncio.sleep(READY_POLL_S)
        self._console.say(f"{self.spec.name}: ready after {time.monotonic() - started_at:.1f} s")
        self.ready.set()

    async def _pause(self, status: int, num_failures: int) -> None:
        is_first_start = not self.ready.is_set()
        if is_first_start and (status == USAGE_STATUS or num_failures >= MAX_START_FAILURES):
            raise ChildFailedError(self.spec.name, status)
        delay_s = restart_delay_s(num_failures)
        how = describe_status(status)
        self._console.say(f"{self.spec.name}: {how}; starting it again in {delay_s:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)


def describe_status(status: int) -> str:
    """Say in words how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
