"""Which blocks the core has cached, mirrored in the frontend for those who subscribe.

Batches are numbered: a snapshot carries the number of the last change that it includes, each change
the next one. Every subscriber gets the same message objects; a queue that is full ends its
subscription, because a subscriber with a gap has to start over anyway.
"""

import asyncio
from collections.abc import AsyncIterator

from quire_engine.core.messages import KvEvents
from quire_engine.rpc import engine_pb2 as pb

SNAPSHOT_CHUNK = 32_768
"""Hashes per snapshot message: 256 KiB."""
MAX_QUEUED_BATCHES = 4_096


class SubscriberTooSlowError(Exception):
    """A subscriber fell behind by more changes than are kept for it."""


class KvSubscription:
    """One subscriber: batches in order, from a snapshot on."""

    def __init__(self, snapshot: list[pb.KvEventBatch], max_queued: int) -> None:
        self._snapshot = snapshot
        self._max_queued = max_queued
        self._changes: asyncio.Queue[pb.KvEventBatch | None] = asyncio.Queue()
        self._overflowed = False

    def offer(self, batch: pb.KvEventBatch) -> None:
        if self._changes.qsize() >= self._max_queued:
            self._overflowed = True
        else:
            self._changes.put_nowait(batch)

    def end(self) -> None:
        """Let the subscriber go once it has read what there is."""
        self._changes.put_nowait(None)

    async def batches(self) -> AsyncIterator[pb.KvEventBatch]:
        """Yield the snapshot, then changes until the end.

        Raises:
            SubscriberTooSlowError: changes were lost.
        """
        for batch in self._snapshot:
            yield batch
        self._snapshot = []
        while not self._overflowed:
            change = await self._changes.get()
            if change is None:
                return
            yield change
        raise SubscriberTooSlowError(
            f"more than {self._max_queued} changes were waiting to be read; subscribe again"
        )


class KvMirror:
    """The set of cached block hashes and its subscribers."""

    def __init__(self, epoch: int, *, max_queued: int = MAX_QUEUED_BATCHES) -> None:
        self.epoch = epoch
        self.seq = 0
        self._max_queued = max_queued
        self._hashes: set[int] = set()
        self._subscriptions: set[KvSubscription] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def apply(self, events: KvEvents) -> None:
        """Take over the changes of one step and tell every subscriber."""
        if events.cleared:
            self._hashes.clear()
        for _, hashes in events.stored:
            self._hashes.update(hashes)
        self._hashes.difference_update(events.removed)
        self.seq += 1
        if self._subscriptions:
            self._publish(events)

    def subscribe(self) -> KvSubscription:
        """Start a subscription; `unsubscribe` ends it."""
        subscription = KvSubscription(self._snapshot(), self._max_queued)
        self._subscriptions.add(subscription)
        return subscription

    def end(self) -> None:
        """End every subscription."""
        for subscription in self._subscriptions:
            subscription.end()

    def unsubscribe(self, subscription: KvSubscription) -> None:
        self._subscriptions.discard(subscription)

    def _publish(self, events: KvEvents) -> None:
        batch = pb.KvEventBatch(
            epoch=self.epoch,
            seq=self.seq,
            cleared=events.cleared,
            stored=[pb.KvEventBatch.Stored(parent=p, hashes=h) for p, h in events.stored],
            removed=events.removed,
        )
        for subscription in self._subscriptions:
            subscription.offer(batch)

    def _snapshot(self) -> list[pb.KvEventBatch]:
        hashes = list(self._hashes)
        starts = range(0, max(len(hashes), 1), SNAPSHOT_CHUNK)
        return [
            pb.KvEventBatch(
                epoch=self.epoch,
                seq=self.seq,
                snapshot=hashes[start : start + SNAPSHOT_CHUNK],
                snapshot_continues=start != starts[-1],
            )
            for start in starts
        ]
