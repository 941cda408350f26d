"""Which key is due: the queue behind the workers, without a clock and without waiting.

A key is in at most one of three states, and additionally may wait for a later moment:

    ready     to be taken, in the order of arrival
    active    taken by a worker; the same key is never given out twice at a time
    dirty     active and added again: ready once more when the worker is done

So however often a key is added, one run at most is outstanding, and the last addition is never
lost. Failures of a key make it wait longer each time; other keys are not held up.
"""

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a failing key waits: `first_s` doubled per failure, `max_s` at most."""

    first_s: float = 0.05
    max_s: float = 60.0

    def delay_s(self, num_failures: int) -> float:
        """Return the wait after the `num_failures`-th failure in a row, counted from one."""
        # The exponent is capped: 2.0**1100 is an OverflowError.
        return min(self.max_s, self.first_s * 2.0 ** min(num_failures - 1, 64))


@dataclass(slots=True)
class Schedule(Generic[KeyT]):
    """Keys to work on. Times are seconds of the caller's clock, which never goes back."""

    backoff: Backoff = field(default_factory=Backoff)
    num_adds: int = 0
    num_retries: int = 0
    _ready: deque[KeyT] = field(default_factory=deque)
    _ready_since: dict[KeyT, float] = field(default_factory=dict)
    _active_since: dict[KeyT, float] = field(default_factory=dict)
    _dirty: set[KeyT] = field(default_factory=set)
    _due: dict[KeyT, float] = field(default_factory=dict)
    _heap: list[tuple[float, int, KeyT]] = field(default_factory=list)
    _num_pushed: int = 0
    _failures: dict[KeyT, int] = field(default_factory=dict)

    def add(self, key: KeyT, *, now: float) -> None:
        """Make a key ready, unless it is; an active one becomes ready when it is done."""
        self._due.pop(key, None)
        if key in self._active_since:
            if key not in self._dirty:
                self._dirty.add(key)
                self.num_adds += 1
        elif key not in self._ready_since:
            self._ready.append(key)
            self._ready_since[key] = now
            self.num_adds += 1

    def add_after(self, key: KeyT, delay_s: float, *, now: float) -> None:
        """Make a key ready after a delay; the earliest of several wishes wins."""
        if delay_s <= 0:
            self.add(key, now=now)
            return
        due = now + delay_s
        if key in self._ready_since or key in self._dirty or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._num_pushed += 1
        heapq.heappush(self._heap, (due, self._num_pushed, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def add_failed(self, key: KeyT, *, now: float) -> float:
        """Make a key ready after its backoff; return the wait."""
        self._failures[key] = self._failures.get(key, 0) + 1
        self.num_retries += 1
        delay_s = self.backoff.delay_s(self._failures[key])
        self.add_after(key, delay_s, now=now)
        return delay_s

    def forget(self, key: KeyT) -> None:
        """Forget a key's failures, because it succeeded or because it is no more."""
        self._failures.pop(key, None)

    def num_failures(self, key: KeyT) -> int:
        """Return how often a key failed in a row."""
        return self._failures.get(key, 0)

    def take(self, *, now: float) -> KeyT | None:
        """Take the key that is ready the longest, or None. The taker must call `done`."""
        self._wake(now)
        if not self._ready:
            return None
        key = self._ready.popleft()
        del self._ready_since[key]
        self._active_since[key] = now
        return key

    def done(self, key: KeyT, *, now: float) -> None:
        """Give a taken key back; it is ready again at once if it was added meanwhile."""
        del self._active_since[key]
        if key in self._dirty:
            self._dirty.remove(key)
            self._due.pop(key, None)
            self._ready.append(key)
            self._ready_since[key] = now

    def next_due(self) -> float | None:
        """Return when the next waiting key becomes ready; None if none waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def depth(self) -> int:
        """How many keys are ready."""
        return len(self._ready)

    @property
    def num_waiting(self) -> int:
        """How many keys wait for a later moment."""
        return len(self._due)

    @property
    def num_active(self) -> int:
        """How many keys are being worked on."""
        return len(self._active_since)

    def ready_for_s(self, key: KeyT, *, now: float) -> float:
        """Return how long a key has been ready; 0 if it is not."""
        return now - self._ready_since.get(key, now)

    def oldest_ready_s(self, *, now: float) -> float:
        """Return how long the key at the head has been ready; 0 if there is none."""
        return self.ready_for_s(self._ready[0], now=now) if self._ready else 0.0

    def longest_active_s(self, *, now: float) -> float:
        """Return how long the slowest worker has had its key; 0 if none is active."""
        return max((now - since for since in self._active_since.values()), default=0.0)

    def unfinished_s(self, *, now: float) -> float:
        """Return the sum of the times that active keys have been worked on."""
        return sum(now - since for since in self._active_since.values())

    def check(self) -> None:
        """Verify the invariants; for tests and idle moments."""
        assert list(self._ready) == list(self._ready_since), "the ready keys have one order"
        ready, active = self._ready_since.keys(), self._active_since.keys()
        assert not ready & active, "no key is both ready and active"
        assert self._dirty <= active, "only active keys are dirty"
        assert not self._due.keys() & ready, "a ready key does not also wait"
        queued = {(due, key) for due, _, key in self._heap}
        assert {(due, key) for key, due in self._due.items()} <= queued, "every waiting key wakes"

    def _wake(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            self.add(key, now=now)
