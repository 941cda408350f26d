"""The schedule with a clock and waiting workers."""

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from quire_operator.runtime.schedule import Backoff, Schedule

KeyT = TypeVar("KeyT", bound=Hashable)


class WorkQueue(Generic[KeyT]):
    """One queue for all workers of one event loop."""

    def __init__(
        self, *, backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.schedule: Schedule[KeyT] = Schedule(backoff=backoff or Backoff())
        self.clock = clock
        self._changed = asyncio.Event()

    def add(self, key: KeyT, *, delay_s: float = 0.0, is_urgent: bool = False) -> None:
        """Ask for a run of this key, now or later; urgent ones come before the others."""
        if is_urgent and delay_s <= 0:
            self.schedule.add(key, now=self.clock(), is_urgent=True)
        else:
            self.schedule.add_after(key, delay_s, now=self.clock())
        self._changed.set()

    def add_failed(self, key: KeyT) -> float:
        """Ask for another try after the key's backoff; return the wait."""
        delay_s = self.schedule.add_failed(key, now=self.clock())
        self._changed.set()
        return delay_s

    def forget(self, key: KeyT) -> None:
        """Start the backoff of a key over."""
        self.schedule.forget(key)

    async def take(self) -> tuple[KeyT, float]:
        """Wait for a key; return it and how long it had been ready. Call `done` afterwards."""
        while True:
            key, waited_s = self._take_now()
            if key is not None:
                return key, waited_s
            self._changed.clear()
            due = self.schedule.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self.clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: KeyT) -> None:
        """Give a taken key back."""
        self.schedule.done(key, now=self.clock())
        self._changed.set()

    def _take_now(self) -> tuple[KeyT | None, float]:
        now = self.clock()
        schedule = self.schedule
        waited_s = schedule.next_ready_s(now=now)
        return schedule.take(now=now), waited_s
