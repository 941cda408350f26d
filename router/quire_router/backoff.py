"""Waits between attempts that grow, with jitter so that many do not knock at once."""

import random


class Backoff:
    """Each wait is between half of and the whole current step; a step grows to the maximum."""

    def __init__(self, *, first_s: float, max_s: float, factor: float = 1.7) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._factor = factor
        self._step_s = first_s

    def next_s(self) -> float:
        """Return how long to wait now, in seconds."""
        step_s = self._step_s
        self._step_s = min(step_s * self._factor, self._max_s)
        return step_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew: it went well."""
        self._step_s = self._first_s
