"""Finds the tiles that make a whole step fastest.

Alone, some tiles win that lose beside the kernels before and after them, so a step is timed as it
runs in serving, with one choice of tiles after the other. `quire_engine.runner.gpu.tuning` has the
steps; what can be chosen is in `tune_linear.py` and `tune_decode.py`.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from triton.runtime.errors import OutOfResources

NUM_FINALISTS = 3
"""The best of many times owes something to luck: so many are timed once more."""

StepTimer = Callable[[int], float]
"""Returns the seconds of a step of so many tokens, with the tables as they are."""

Tiles = TypeVar("Tiles")


class Choice(Protocol[Tiles]):
    """What a table says for one thing of a step, and whether that computes the right numbers."""

    @property
    def name(self) -> str:
        """What the tiles are for."""
        ...

    def get(self) -> Tiles:
        """Return what the table says."""
        ...

    def put(self, tiles: Tiles) -> None:
        """Change what the table says."""
        ...

    def error(self, tiles: Tiles) -> float:
        """Return how far tiles are from the reference, in shares of what is allowed."""
        ...


class StepTuner:
    """Times steps with many tiles in a table until the time is up, and leaves the best in it."""

    def __init__(
        self, seconds_of: StepTimer, say: Callable[[str], None], *, stop_at: float = math.inf
    ) -> None:
        self._seconds_of, self._say, self._stop_at = seconds_of, say, stop_at

    @property
    def is_out_of_time(self) -> bool:
        return time.monotonic() > self._stop_at

    def tune(self, choice: Choice[Tiles], num_tokens: int, candidates: Iterable[Tiles]) -> None:
        """Leave the fastest right tiles in the table: what it says, or a candidate."""
        before = choice.get()
        timed = self._times(choice, num_tokens, [before, *candidates])
        finalists = [*sorted(timed, key=timed.__getitem__)[:NUM_FINALISTS], before]
        again = self._times(choice, num_tokens, [tiles for tiles in finalists if tiles in timed])
        final = timed if self.is_out_of_time else again
        ranked = sorted(final, key=final.__getitem__)
        best = next((tiles for tiles in ranked if self._is_right(choice, tiles)), before)
        choice.put(best)
        before_us, best_us = (final.get(tiles, math.nan) * 1e6 for tiles in (before, best))
        self._say(
            f"{choice.name} x {num_tokens}: step {before_us:.1f} us, "
            f"best of {len(timed)} {best_us:.1f} {best}"
        )

    def _times(
        self, choice: Choice[Tiles], num_tokens: int, candidates: Iterable[Tiles]
    ) -> dict[Tiles, float]:
        """Time a step with each of some tiles; those that do not fit the GPU are left out."""
        times: dict[Tiles, float] = {}
        for tiles in dict.fromkeys(candidates):
            if self.is_out_of_time:
                self._say("  out of time: the rest is not measured")
                break
            choice.put(tiles)
            try:
                times[tiles] = self._seconds_of(num_tokens)
            except OutOfResources:
                continue
        return times

    def _is_right(self, choice: Choice[Tiles], tiles: Tiles) -> bool:
        error = choice.error(tiles)
        if not error < 1:
            self._say(f"  WRONG by {error:.1f} times what is allowed: {tiles}")
        return error < 1
