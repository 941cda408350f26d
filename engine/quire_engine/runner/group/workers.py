"""The first rank's end of the workers: starts them, tells them of steps, notices when one dies."""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from quire_engine.errors import ConfigError, QuireError
from quire_engine.model.share import Share
from quire_engine.rpc.logs import JsonFormatter
from quire_engine.runner.group.collectives import leave
from quire_engine.runner.group.wire import (
    HOST,
    LOADED,
    TIMEOUT,
    Report,
    WorkerSpec,
    frame,
    write_all,
)
from quire_engine.runner.plan import StepPlan

logger = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
"""So that a long prompt does not wait for a worker to read it."""
GRACE_S = 5.0
"""How long after a worker's death this process may wait for its part of a step."""
EXIT_S = 5.0
"""How long workers get to end by themselves."""


class Worker:
    """One worker process, and what it has reported."""

    def __init__(
        self, spec: WorkerSpec, report_fd: int, process: "subprocess.Popen[bytes]"
    ) -> None:
        assert process.stdin is not None, "stdin is a pipe"
        self.rank, self.report_fd, self.process = spec.rank, report_fd, process
        self.plan_fd = process.stdin.fileno()
        self.stages: set[str] = set()

    def close(self) -> None:
        """Let it know that it is over."""
        assert self.process.stdin is not None, "stdin is a pipe"
        with contextlib.suppress(OSError):
            self.process.stdin.close()


class Workers:
    """All ranks but the first, which this process is."""

    def __init__(self, build: str, argument: Any, size: int) -> None:
        """Start them; each builds its runner with `build`, as `WorkerSpec` says."""
        self.share = Share(0, size)
        self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        self._changed = threading.Condition()
        self._error: QuireError | None = None
        self._is_closing = self._is_noticed = self._is_serving = False
        self._num_waiting = 0
        self._stage = ""
        self._workers: list[Worker] = []
        for rank in range(1, size):
            self._workers.append(_spawn(build, argument, Share(rank, size), self._store.port))
        for worker in self._workers:
            threading.Thread(
                target=self._watch, args=(worker,), name=f"rank-{worker.rank}", daemon=True
            ).start()

    @property
    def pids(self) -> Sequence[int]:
        return [worker.process.pid for worker in self._workers]

    def store(self) -> Any:
        return self._store

    def reach(self, stage: str) -> None:
        """Wait until all workers have got so far.

        Raises:
            ConfigError: one of them cannot run as configured.
            QuireError: one of them failed in any other way.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or all(stage in worker.stages for worker in self._workers)
            )
        self.check()
        self._stage = stage

    def serve(self) -> None:
        """Every one is ready: from now on a death is noticed sooner."""
        self._is_serving = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark what may wait for workers, and would do so for ever if one was gone."""
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1

    def check(self) -> None:
        """Raise if a worker is gone: nothing more can be computed.

        Raises:
            ConfigError: one of them could not run as configured.
            QuireError: one of them failed in any other way.
        """
        if self._error is not None:
            self._is_noticed = True
            raise self._error

    def tell(self, plan: StepPlan) -> None:
        """Let all workers launch a step.

        Raises:
            QuireError: one of them is gone.
        """
        self.check()
        data = frame(plan)
        for worker in self._workers:
            try:
                write_all(worker.plan_fd, data)
            except OSError as error:
                self.fail(QuireError(f"rank {worker.rank} is gone: {error}"))
        self.check()

    def fail(self, error: QuireError) -> None:
        """Note that the ranks are no longer at the same step; the first reason stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """End all workers, and wait until they are gone."""
        self._is_closing = True
        for worker in self._workers:
            worker.close()
        deadline = time.monotonic() + EXIT_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        leave()

    def _watch(self, worker: Worker) -> None:
        """Take in a worker's reports until it ends."""
        with os.fdopen(worker.report_fd, "rb") as reports:
            for line in reports:
                self._take(worker, Report.from_line(line))
        code = worker.process.wait()
        if self._is_closing:
            return
        reason = _describe_exit(code)
        logger.error("worker died rank=%d pid=%d: it %s", worker.rank, worker.process.pid, reason)
        self.fail(QuireError(f"the worker of rank {worker.rank} {reason}; see its log"))
        self._end_if_stuck()

    def _take(self, worker: Worker, report: Report) -> None:
        if report.failure:
            kind = ConfigError if report.is_config else QuireError
            self.fail(kind(report.failure))
            return
        with self._changed:
            worker.stages.add(report.stage)
            self._changed.notify_all()

    def _end_if_stuck(self) -> None:
        """End this process if it waits for a sum that will never be complete.

        On a GPU nothing gentler ends that. Before all have loaded, it will notice by itself.
        """
        time.sleep(GRACE_S)
        is_starting = self._stage == LOADED and not self._is_noticed
        is_stuck = self._num_waiting > 0 if self._is_serving else is_starting
        if is_stuck and not self._is_closing:
            logger.critical("stuck in a step without its worker, ending: %s", self._error)
            os._exit(1)


def _spawn(build: str, argument: Any, share: Share, store_port: int) -> Worker:
    reports, report_fd = os.pipe()
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    spec = WorkerSpec(
        build=build,
        argument=argument,
        rank=share.rank,
        size=share.size,
        store_port=store_port,
        report_fd=report_fd,
        log_level=root.getEffectiveLevel(),
        log_format="json" if is_json else "text",
    )
    # The child must find what this process finds, wherever its imports come from.
    paths = [path or str(Path.cwd()) for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", "quire_engine.runner.group.worker"],
        stdin=subprocess.PIPE,
        pass_fds=(report_fd,),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    os.close(report_fd)
    worker = Worker(spec, reports, process)
    with contextlib.suppress(OSError):  # a user's pipes may have used up what they may have
        fcntl.fcntl(worker.plan_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with contextlib.suppress(OSError):  # dead already, which the watcher will tell
        write_all(worker.plan_fd, frame(spec))
    return worker


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
