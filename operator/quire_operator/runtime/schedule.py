"""Which key is due: the queue behind the workers, without a clock and without waiting.

A key is in at most one of three states, and additionally may wait for a later moment:

    ready     to be taken: urgent ones first, each kind in the order of arrival
    active    taken by a worker; the same key is never given out twice at a time
    dirty     active and added again: ready once more when the worker is done

So however often a key is added, one run at most is outstanding, and the last addition is never
lost. Failures of a key make it wait longer each time; other keys are not held up. Urgent is what a
person waits for; of every few keys taken one is the oldest of the others, so that none starves.
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

_URGENT_IN_A_ROW = 7
"""Most urgent keys that are taken while others are ready."""


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
    _urgent: dict[KeyT, float] = field(default_factory=dict)
    _ready: dict[KeyT, float] = field(default_factory=dict)
    _active_since: dict[KeyT, float] = field(default_factory=dict)
    _dirty: dict[KeyT, bool] = field(default_factory=dict)
    _due: dict[KeyT, float] = field(default_factory=dict)
    _heap: list[tuple[float, int, KeyT]] = field(default_factory=list)
    _num_pushed: int = 0
    _num_urgent_taken: int = 0
    _failures: dict[KeyT, int] = field(default_factory=dict)

    def add(self, key: KeyT, *, now: float, is_urgent: bool = False) -> None:
        """Make a key ready, unless it is; an active one becomes ready when it is done."""
        self._due.pop(key, None)
        if key in self._active_since:
            self.num_adds += key not in self._dirty
            self._dirty[key] = is_urgent or self._dirty.get(key, False)
        elif key not in self._urgent and (is_urgent or key not in self._ready):
            since = self._ready.pop(key, None)
            self.num_adds += since is None
            self._put(key, now if since is None else since, is_urgent)

    def add_after(self, key: KeyT, delay_s: float, *, now: float) -> None:
        """Make a key ready after a delay; the earliest of several wishes wins."""
        if delay_s <= 0:
            self.add(key, now=now)
            return
        due = now + delay_s
        is_ready = key in self._ready or key in self._urgent or key in self._dirty
        if is_ready or self._due.get(key, due + 1) <= due:
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
        """Take the key whose turn it is, or None. The taker must call `done`."""
        self._wake(now)
        line = self._line()
        if not line:
            return None
        key = next(iter(line))
        del line[key]
        self._num_urgent_taken = self._num_urgent_taken + 1 if line is self._urgent else 0
        self._active_since[key] = now
        return key

    def done(self, key: KeyT, *, now: float) -> None:
        """Give a taken key back; it is ready again at once if it was added meanwhile."""
        del self._active_since[key]
        if key in self._dirty:
            self._put(key, now, self._dirty.pop(key))
            self._due.pop(key, None)

    def next_due(self) -> float | None:
        """Return when the next waiting key becomes ready; None if none waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def depth(self) -> int:
        """How many keys are ready."""
        return len(self._ready) + len(self._urgent)

    @property
    def num_waiting(self) -> int:
        """How many keys wait for a later moment."""
        return len(self._due)

    @property
    def num_active(self) -> int:
        """How many keys are being worked on."""
        return len(self._active_since)

    def next_ready_s(self, *, now: float) -> float:
        """Return how long the key whose turn it is has been ready; 0 if there is none."""
        return now - next(iter(self._line().values()), now)

    def oldest_ready_s(self, *, now: float) -> float:
        """Return how long the key that waits longest has been ready; 0 if there is none."""
        heads = (next(iter(line.values()), now) for line in (self._urgent, self._ready))
        return now - min(heads)

    def longest_active_s(self, *, now: float) -> float:
        """Return how long the slowest worker has had its key; 0 if none is active."""
        return max((now - since for since in self._active_since.values()), default=0.0)

    def unfinished_s(self, *, now: float) -> float:
        """Return the sum of the times that active keys have been worked on."""
        return sum(now - since for since in self._active_since.values())

    def check(self) -> None:
        """Verify the invariants; for tests and idle moments."""
        ready = self._ready.keys() | self._urgent.keys()
        assert not self._ready.keys() & self._urgent.keys(), "a key stands in one line"
        assert not ready & self._active_since.keys(), "no key is both ready and active"
        assert self._dirty.keys() <= self._active_since.keys(), "only active keys are dirty"
        assert not self._due.keys() & ready, "a ready key does not also wait"
        queued = {(due, key) for due, _, key in self._heap}
        assert {(due, key) for key, due in self._due.items()} <= queued, "every waiting key wakes"

    def _put(self, key: KeyT, since: float, is_urgent: bool) -> None:
        (self._urgent if is_urgent else self._ready)[key] = since

    def _line(self) -> dict[KeyT, float]:
        is_turn_of_others = self._num_urgent_taken >= _URGENT_IN_A_ROW and self._ready
        return self._ready if is_turn_of_others or not self._urgent else self._urgent

    def _wake(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            self.add(key, now=now)
