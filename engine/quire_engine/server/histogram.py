"""A histogram that costs a bisection per value."""

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts of values by bucket. Written by one thread; a reader sees a recent state."""

    __slots__ = ("_bounds_text", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._bounds_text = (*map(str, self.bounds), "+Inf")

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it), the last bound being +Inf."""
        cumulative = 0
        result: list[tuple[str, float]] = []
        for bound, count in zip(self._bounds_text, list(self.counts), strict=True):
            cumulative += count
            result.append((bound, cumulative))
        return result
