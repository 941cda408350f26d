"""When to report on a deployment: news at once, progress in steps, and of many less often.

A status is a write of the API server and an event for everybody who watches. A deployment that
starts changes its status many times, and a thousand that start at once would cost thousands of
writes while the server is busiest.
"""

import math
from collections.abc import Callable, Iterable

from quire_operator.api.conditions import PROGRESSING
from quire_operator.plan import Manifest
from quire_operator.runtime.metrics import DeploymentKey

_FIRST_LOOK_S = 1.0
"""When to look after the first writes, if nothing else has one look before."""
_MAX_PROGRESS_PER_S = 2.0
"""Reports of mere progress, of all deployments together."""
_MAX_INTERVAL_S = 300.0
"""Longest time between two reports on one that starts among many."""
_COUNT_EVERY_S = 1.0


class ReportPace:
    """What was reported when, and who waits. Times are seconds of the caller's clock."""

    def __init__(self, progress_s: float, *, num_starting: Callable[[], int]) -> None:
        self._progress_s = progress_s
        self._num_starting = num_starting
        self._counted_at = -math.inf
        self._interval_s = progress_s
        self._first_looks: dict[DeploymentKey, int] = {}
        self._reported_at: dict[DeploymentKey, float] = {}
        self._due: dict[DeploymentKey, float] = {}
        self._progress_told_at = -math.inf

    def wait_for_first_look(self, key: DeploymentKey, generation: int) -> float | None:
        """Return how long to put off the first report on a generation; children were just made.

        Of them there is nothing to say yet. None the second time: a deployment whose children
        somebody keeps changing has a status as well.
        """
        is_first = self._first_looks.get(key) != generation
        self._first_looks[key] = generation
        return _FIRST_LOOK_S if is_first else None

    def wait_with_progress(self, key: DeploymentKey, now: float) -> float | None:
        """Return when to look again at one that has mere progress to tell; None: tell it now."""
        if key not in self._due:
            self._due[key] = self._reported_at.get(key, -math.inf) + self._interval(now)
        slot_at = self._progress_told_at + 1 / _MAX_PROGRESS_PER_S
        left_s = max(self._due[key], slot_at) - now
        if left_s <= 0:
            self._progress_told_at = now
            return None
        # Those who wait look twice in the time that all of them need.
        return max(left_s, len(self._due) / _MAX_PROGRESS_PER_S / 2)

    def note_told(self, key: DeploymentKey) -> None:
        """Note that nothing is put off: the status says all there is to say."""
        self._due.pop(key, None)

    def note_reported(self, key: DeploymentKey, now: float) -> None:
        """Note that a report is being written."""
        self._reported_at[key] = now

    def forget(self, key: DeploymentKey) -> None:
        """Drop what is remembered of a deployment that is gone."""
        for memory in (self._first_looks, self._reported_at, self._due):
            memory.pop(key, None)

    def _interval(self, now: float) -> float:
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = now
            crowd_s = self._num_starting() / _MAX_PROGRESS_PER_S
            self._interval_s = max(self._progress_s, min(crowd_s, _MAX_INTERVAL_S))
        return self._interval_s


def num_starting(deployments: Iterable[Manifest]) -> int:
    """Count deployments that were never reported on, and those whose rollout goes on."""
    return sum(_is_starting(deployment.get("status") or {}) for deployment in deployments)


def _is_starting(status: Manifest) -> bool:
    reasons = (
        item.get("reason") for item in status.get("conditions") or () if item["type"] == PROGRESSING
    )
    return not status or next(reasons, "") == "NewRevision"
