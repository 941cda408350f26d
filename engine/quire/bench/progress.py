"""The progress of a measurement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quire_engine.progress import bar


@contextmanager
def progress(what: str, total: int, *, is_shown: bool = True) -> Iterator[Callable[[], None]]:
    """Give a function that says that one more of them is done."""
    shown = bar(total=total, desc=what, unit=what, leave=False, disable=not is_shown)
    with shown:

        def advance() -> None:
            shown.update(1)

        yield advance
