"""Progress of long work on stderr: a bar on a terminal, now and then a line where there is none.

    with bar(desc="Loading", total=num_bytes, unit="B", unit_scale=True) as progress:
        progress.update(len(part))

Everything is tqdm's, so that notebooks get their widget and its settings in the environment work.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.std import tqdm

from quire_engine.rpc.logs import Announcer, JsonFormatter

VARIABLE = "QUIRE_PROGRESS"
"""`bar` in the environment of a process whose output is relayed to a terminal."""
INTERVAL_S = 5.0
SLOWER = 10
"""After so many intervals lines become rarer: their number grows with the logarithm of time."""


class LineProgress(tqdm):  # type: ignore[type-arg]  # an alias of the class cannot be called
    """tqdm for logs: a line every five seconds at first, then rarer, and one at the end.

    Work that ends before the first line is passed over in silence, unless `always_ends`.
    """

    monitor_interval = 0
    line_format = "{desc}: {percentage:.0f}% ({n_fmt}/{total_fmt}), {rate_fmt}, {remaining} left"
    endless_format = "{desc}: {n_fmt}, {rate_fmt}"

    def __init__(
        self,
        *args: Any,
        always_ends: bool = False,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self._always_ends = always_ends
        self._clock = clock
        self._began_at = clock()
        self._next_at = self._began_at + INTERVAL_S
        # Whether a line is due is decided here, at every update; its rate is that of the whole.
        options |= {"mininterval": 0, "miniters": 1, "smoothing": 0}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if one is due."""
        now = self._clock()
        if now >= self._next_at:
            self._write(msg)
            self._next_at = now + max(INTERVAL_S, (now - self._began_at) / SLOWER)

    def close(self) -> None:
        """Write the last line."""
        if not self.disable:
            if self._always_ends or self._clock() - self._began_at >= INTERVAL_S:
                self._write()
            self.sp = None  # what tqdm's own close would write with
        super().close()

    def _write(self, msg: str | None = None) -> None:
        self.bar_format = (self.line_format if self.total else self.endless_format) + "{postfix}"
        line = str(self) if msg is None else msg
        if line:
            Announcer("quire_engine", "json" if _logs_json() else "text", sys.stderr)(line)


class DownloadProgress(LineProgress):
    """The lines of a download from the hub, which shows several bars of it: one is enough."""

    def __init__(self, *args: Any, **options: Any) -> None:
        is_whole = options.get("unit") == "B" and "Downloading" not in options.get("desc", "")
        super().__init__(*args, **options | {"disable": not is_whole, "desc": "Downloading"})

    def __del__(self) -> None:
        """Say nothing: the hub's library never closes it, and Python may be ending."""
        self.disable = True

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Keep ours."""


def bar(*args: Any, **options: Any) -> Any:
    """Return a tqdm for stderr, as its keywords say; `always_ends` is for lines alone."""
    always_ends = options.pop("always_ends", False)
    if has_bars():
        from tqdm.auto import tqdm as auto

        return auto(*args, **options)
    return LineProgress(*args, always_ends=always_ends, **options)


def has_bars() -> bool:
    """Tell whether a bar that redraws itself can be seen as one."""
    if _is_notebook():
        return True
    return not _logs_json() and (sys.stderr.isatty() or os.environ.get(VARIABLE) == "bar")


def _is_notebook() -> bool:
    from tqdm.auto import tqdm as auto

    return auto.status_printer is not tqdm.status_printer


def _logs_json() -> bool:
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)
