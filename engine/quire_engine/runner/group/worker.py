"""A worker: `python -m quire_engine.runner.group.worker`, started by `group/workers.py`.

It builds the runner of its rank and then launches every step that the first rank launches, with the
same plan. It samples what the first rank samples, so nothing is sent back.

Standard input stays open as long as the first rank lives. Its end, however it comes, ends a worker.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import threading
import traceback
from typing import Any, NoReturn

from quire_engine.errors import ConfigError
from quire_engine.model.share import Share
from quire_engine.rpc.logs import configure_logging
from quire_engine.runner.group.wire import (
    HOST,
    READY,
    TIMEOUT,
    Report,
    WorkerSpec,
    load_function,
    read_frame,
    write_all,
)

logger = logging.getLogger(__name__)

STDIN = 0


class WorkerRank:
    """A rank that follows the first."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self.share = Share(spec.rank, spec.size)

    def store(self) -> Any:
        # Imported here: a worker is to hear of its parent's end before torch is loaded.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        return TCPStore(HOST, self._spec.store_port, timeout=TIMEOUT)

    def reach(self, stage: str) -> None:
        self.report(Report(stage=stage))

    def report(self, report: Report) -> None:
        write_all(self._spec.report_fd, report.to_line())


def main() -> NoReturn:
    """Follow the first rank until it is gone."""
    # Ctrl-C and service managers signal the whole group; the first rank decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watcher", daemon=True).start()
    spec: WorkerSpec = read_frame(STDIN)
    # What all ranks would say, the first one says.
    level = spec.log_level if spec.log_level <= logging.DEBUG else logging.WARNING
    configure_logging(logging.getLevelName(level), spec.log_format)
    rank = WorkerRank(spec)
    try:
        runner = load_function(spec.build)(spec.argument, rank)
    except Exception as error:  # whatever it is, the first rank must hear of it
        logger.exception("start failed rank=%d", spec.rank)
        rank.report(_failure(spec, error))
        os._exit(1)
    gc.collect()
    gc.freeze()
    rank.reach(READY)
    with contextlib.suppress(EOFError):  # the end of the first rank is that of its workers
        while True:
            plan = read_frame(STDIN)
            runner.launch(plan)  # the result is the first rank's to look at
    os._exit(0)  # taking leave of others in a group waits for them


def _failure(spec: WorkerSpec, error: Exception) -> Report:
    if isinstance(error, ConfigError):
        return Report(failure=str(error), is_config=True)
    lines = "".join(traceback.format_exception(error))
    return Report(failure=f"rank {spec.rank} could not start: {lines}")


def _end_with_parent() -> None:
    poller = select.poll()
    poller.register(STDIN, 0)  # what is there to read is not its business, only the end
    poller.poll()
    os._exit(0)  # a step that hangs would not notice anything gentler


if __name__ == "__main__":
    main()
