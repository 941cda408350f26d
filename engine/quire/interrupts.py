"""Ctrl-C that waits for a good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Hold KeyboardInterrupt back, so that it never breaks into the middle of a step.

    Yields a function that raises it if it came. A second Ctrl-C is not held back. Outside of the
    main thread, or where someone else handles the signal, nothing changes.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_ours:
        yield lambda: None
        return
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pending:
            signal.default_int_handler(number, frame)
        pending.append(number)

    def check() -> None:
        if pending:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
