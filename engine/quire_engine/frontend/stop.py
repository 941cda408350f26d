"""Stop strings over a stream of text.

The first stop string to be completed ends the text; of two completed by the same character, the
longer. That depends on the text alone, not on how it was split. Only what may yet become a stop
string is held back: the longest end of the text that begins one.
"""

import re
from collections.abc import Sequence


class StopStrings:
    """Watches one completion's text for stop strings."""

    __slots__ = ("_find_first", "_held", "_includes_match", "_stops", "matched")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        """Watch for any of `stops`, none of them empty."""
        self._stops = tuple(stops)
        first = "".join({re.escape(stop[0]) for stop in stops})
        self._find_first = re.compile(f"[{first}]").search
        self._includes_match = include_in_output
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """Return the text that is safe to give out now that `text` has come.

        `may_stop` is false while a match must not end the text; only a match whose end comes in a
        later push counts then. Nothing may be pushed after a match.
        """
        assert self.matched is None, "the text has ended"
        if not self._held and self._find_first(text) is None:
            return text  # as nearly always: no stop string begins here
        if not text:
            return ""
        buffer = self._held + text
        if may_stop and (cut := self._find(buffer, len(self._held))) is not None:
            self._held = ""
            return buffer[:cut]
        num_held = max([_num_begun(buffer, stop) for stop in self._stops])
        safe = len(buffer) - num_held
        self._held = buffer[safe:]
        return buffer[:safe]

    def finish(self) -> str:
        """Return what was held back: no stop string will come of it."""
        held, self._held = self._held, ""
        return held

    def _find(self, buffer: str, after: int) -> int | None:
        """Find the first match that ends beyond `after`, and return where to cut the text."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, after + 1 - len(stop)))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        if best is None:
            return None
        end, start, self.matched = best
        return end if self._includes_match else start


def _num_begun(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` without completing it."""
    start = text.find(stop[0], max(0, len(text) + 1 - len(stop)))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
