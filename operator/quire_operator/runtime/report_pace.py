"""When to report on a deployment: news at once, progress in steps, and many at a time less often.

A status is a write of the API server and an event for everybody who watches. A deployment that
starts changes its status many times, and a thousand that start at once would cost thousands of
writes while the server is busiest.
"""

import math

from quire_operator.runtime.metrics import DeploymentKey

_FIRST_LOOK_S = 1.0
"""When to look after the first writes, if nothing else has one look before."""
_MAX_PROGRESS_PER_S = 2.0
"""Reports of mere progress, of all deployments together."""


class ReportPace:
    """What was reported when, and who waits. Times are seconds of the caller's clock."""

    def __init__(self, progress_s: float) -> None:
        self._progress_s = progress_s
        self._first_looks: dict[DeploymentKey, int] = {}
        self._reported_at: dict[DeploymentKey, float] = {}
        self._put_off: set[DeploymentKey] = set()
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
        own_turn_at = self._reported_at.get(key, -math.inf) + self._progress_s
        left_s = max(own_turn_at, self._progress_told_at + 1 / _MAX_PROGRESS_PER_S) - now
        if left_s <= 0:
            self._progress_told_at = now
            return None
        self._put_off.add(key)
        # Those who wait look twice in the time that all of them need.
        return max(left_s, len(self._put_off) / _MAX_PROGRESS_PER_S / 2)

    def note_told(self, key: DeploymentKey) -> None:
        """Note that nothing is put off: the status says all there is to say."""
        self._put_off.discard(key)

    def note_reported(self, key: DeploymentKey, now: float) -> None:
        """Note that a report is being written."""
        self._reported_at[key] = now

    def forget(self, key: DeploymentKey) -> None:
        """Drop what is remembered of a deployment that is gone."""
        self._first_looks.pop(key, None)
        self._reported_at.pop(key, None)
        self._put_off.discard(key)
