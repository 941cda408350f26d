"""The parent of a router's workers: starts them, starts them again, and ends with them.

    SIGTERM, SIGINT     passed on: workers stop as a router alone does
    the same again      workers end what is in flight with errors
    SIGKILL of this     the kernel kills the workers
    a worker ends       it is started again, at once or after a wait that grows

It forks, and does nothing else that could keep a fork from being safe: no threads, no event loop,
no gRPC. A worker thus starts in milliseconds and shares most of its memory with the others.
"""

import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from quire_router.backoff import Backoff
from quire_router.workers.memory import Common, Status, WorkerMemory
from quire_router.workers.rows import Rows
from quire_router.workers.values import SharedValues

logger = logging.getLogger(__name__)

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
HURRY = signal.SIGUSR1
"""What workers are told by a second signal; they take any number of SIGTERM for one."""
FIRST_RESTART_S = 0.2
MAX_RESTART_S = 30.0
GOOD_LIFE_S = 10.0
"""A worker that has lived so long is started again as if it were the first time."""
TICK_S = 1.0
MAX_SILENT_TICKS = 30
"""A worker whose event loop stood still for so many ticks is killed: its requests hang."""
PR_SET_PDEATHSIG = 1


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker, over all processes that it is."""

    number: int
    pid: int = 0
    """0: none now."""
    started_at: float = 0.0
    due_at: float = 0.0
    """When to start it, while it is none."""
    beats: int = 0
    num_silent_ticks: int = 0
    backoff: Backoff = field(
        default_factory=lambda: Backoff(first_s=FIRST_RESTART_S, max_s=MAX_RESTART_S)
    )


class Supervisor:
    """Runs workers until a signal."""

    def __init__(
        self,
        memory: WorkerMemory,
        work: Callable[[int], int],
        *,
        stop_s: float,
        tick_s: float = TICK_S,
    ) -> None:
        """`work` is a worker, and returns its exit status; it may take `stop_s` to stop.

        Once per tick it is seen to whether workers hang.
        """
        self._memory = memory
        self._work = work
        self._stop_s = stop_s
        self._workers = [Worker(number=slot.number) for slot in memory.slots]
        self._seen: set[int] = set()
        self._kill_at = 0.0
        self._tick_s = tick_s
        self._tick_at = 0.0
        memory.common[Common.SUPERVISOR] = os.getpid()

    def run(self, on_stop: Callable[[], None]) -> int:
        """Return 0 once told to stop and all workers have ended; `on_stop` comes first."""
        with _wakeups() as wait:
            while not self._seen or any(worker.pid for worker in self._workers):
                self._start_due()
                for received in wait(self._wait_s()):
                    if received in STOPPING:
                        self._on_signal(signal.Signals(received), on_stop)
                self._reap()
                self._check_beats()
        logger.info("all workers have stopped")
        return 0

    def _on_signal(self, received: signal.Signals, on_stop: Callable[[], None]) -> None:
        # As `server.Shutdown` has it: a supervisor's SIGTERM after Ctrl-C is no second thought.
        if received in self._seen:
            self._tell(HURRY)
        elif not self._seen:
            logger.info("stopping signal=%s workers=%d", received.name, len(self._workers))
            on_stop()
            self._kill_at = time.monotonic() + self._stop_s
            self._tell(signal.SIGTERM)
        self._seen.add(received)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)

    def _start_due(self) -> None:
        for worker in self._workers:
            if not self._seen and not worker.pid and time.monotonic() >= worker.due_at:
                worker.started_at = time.monotonic()
                worker.num_silent_ticks = 0
                worker.pid = self._fork(worker.number)
                logger.info("worker started worker=%d pid=%d", worker.number, worker.pid)

    def _fork(self, number: int) -> int:
        parent_pid = os.getpid()
        # Until the worker can stop in order, what asks it to must wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPPING, HURRY})
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, HURRY})
            return pid
        status = 1
        try:
            _become_worker(parent_pid)
            status = self._work(number)
        except BaseException:
            logger.exception("worker failed worker=%d", number)
        finally:
            logging.shutdown()
            os._exit(status)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: Worker, status: int) -> None:
        slot = self._memory.slots[worker.number]
        slot.words[Status.PID] = slot.words[Status.FLAGS] = 0
        # What it had in flight is over: the others would avoid those replicas for ever.
        Rows(slot).release_all()
        SharedValues(self._memory, worker.number).clear_gauges()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._memory.common_numbers[Common.ENDED_CPU_S] = used.ru_utime + used.ru_stime
        pid, worker.pid = worker.pid, 0
        if self._seen:
            return
        if time.monotonic() - worker.started_at > GOOD_LIFE_S:
            worker.backoff.reset()
        delay_s = worker.backoff.next_s()
        worker.due_at = time.monotonic() + delay_s
        self._memory.common[Common.NUM_RESTARTS] += 1
        logger.error(
            "worker ended worker=%d pid=%d status=%d restart_s=%.1f",
            worker.number,
            pid,
            status,
            delay_s,
        )

    def _check_beats(self) -> None:
        """Kill workers that hang. Ticks are counted, not time: this process may be stopped too."""
        if self._seen:
            if time.monotonic() > self._kill_at:
                self._tell(signal.SIGKILL)
            return
        if time.monotonic() < self._tick_at:
            return
        self._tick_at = time.monotonic() + self._tick_s
        for worker in self._workers:
            beats = self._memory.slots[worker.number].words[Status.BEATS]
            is_silent = worker.pid and beats == worker.beats
            worker.num_silent_ticks = worker.num_silent_ticks + 1 if is_silent else 0
            worker.beats = beats
            if worker.num_silent_ticks > MAX_SILENT_TICKS:
                logger.error("worker hangs worker=%d pid=%d", worker.number, worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

    def _wait_s(self) -> float:
        if self._seen:
            return self._tick_s
        due = [worker.due_at for worker in self._workers if not worker.pid]
        return min([self._tick_s, *(max(0.0, due_at - time.monotonic()) for due_at in due)])


def _become_worker(parent_pid: int) -> None:
    """Leave behind what is the parent's, and end when it does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Ctrl-C reaches all of a terminal's processes; this one hears of it from its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


@contextlib.contextmanager
def _wakeups() -> Iterator[Callable[[float], bytes]]:
    """Yield a function that waits for signals so many seconds and returns their numbers."""
    reader, writer = socket.socketpair()
    numbers = (*STOPPING, signal.SIGCHLD)

    def wait(timeout_s: float) -> bytes:
        ready, _, _ = select.select([reader], [], [], timeout_s)
        return reader.recv(256) if ready else b""

    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        signal.set_wakeup_fd(writer.fileno())
        try:
            yield wait
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
