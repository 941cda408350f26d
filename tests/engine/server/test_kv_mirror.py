import asyncio

import pytest
from hypothesis import given, strategies as st

from quire_engine.core.messages import KvEvents
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.server.kv_mirror import (
    SNAPSHOT_CHUNK,
    KvMirror,
    KvSubscription,
    SubscriberTooSlowError,
)

EPOCH = 77


def replay(hashes: set[int], batch: pb.KvEventBatch) -> set[int]:
    """Do what a subscriber does with a batch."""
    hashes = hashes | set(batch.snapshot)
    if batch.cleared:
        hashes = set()
    for stored in batch.stored:
        hashes |= set(stored.hashes)
    return hashes - set(batch.removed)


async def read(subscription: KvSubscription, mirror: KvMirror) -> list[pb.KvEventBatch]:
    """Read what there is."""
    mirror.unsubscribe(subscription)
    subscription.end()
    return [batch async for batch in subscription.batches()]


async def test_an_empty_cache_has_an_empty_snapshot() -> None:
    mirror = KvMirror(EPOCH)

    batches = await read(mirror.subscribe(), mirror)

    assert batches == [pb.KvEventBatch(epoch=EPOCH)]


async def test_a_snapshot_comes_in_chunks_and_only_the_last_ends_it() -> None:
    mirror = KvMirror(EPOCH)
    hashes = list(range(1, SNAPSHOT_CHUNK + 11))
    mirror.apply(KvEvents(stored=[(0, hashes)]))

    first, last = await read(mirror.subscribe(), mirror)

    assert (first.snapshot_continues, last.snapshot_continues) == (True, False)
    assert sorted([*first.snapshot, *last.snapshot]) == hashes
    assert first.seq == last.seq == 1


blocks = st.integers(1, 20)
events = st.builds(
    KvEvents,
    stored=st.lists(st.tuples(st.just(0), st.lists(blocks, max_size=4)), max_size=3),
    removed=st.lists(blocks, max_size=4),
    cleared=st.booleans(),
)


@given(st.lists(events, max_size=6), st.lists(events, max_size=6))
def test_snapshot_and_changes_give_what_the_mirror_holds(
    before: list[KvEvents], after: list[KvEvents]
) -> None:
    async def scenario() -> None:
        mirror = KvMirror(EPOCH)
        for change in before:
            mirror.apply(change)
        subscription = mirror.subscribe()
        for change in after:
            mirror.apply(change)

        batches = await read(subscription, mirror)

        hashes: set[int] = set()
        for batch in batches:
            hashes = replay(hashes, batch)
        assert len(hashes) == len(mirror)
        assert [batch.seq for batch in batches] == list(
            range(len(before), len(before) + len(after) + 1)
        )

    asyncio.run(scenario())


async def test_a_slow_subscriber_is_ended_and_others_are_not() -> None:
    mirror = KvMirror(EPOCH, max_queued=2)
    slow = mirror.subscribe()
    for number in range(1, 4):
        mirror.apply(KvEvents(stored=[(0, [number])]))
    fresh = mirror.subscribe()

    with pytest.raises(SubscriberTooSlowError, match="more than 2 changes"):
        async for _ in slow.batches():
            pass
    batches = await read(fresh, mirror)

    assert sorted(batches[0].snapshot) == [1, 2, 3]


async def test_ending_the_mirror_ends_its_subscribers() -> None:
    mirror = KvMirror(EPOCH)
    subscription = mirror.subscribe()

    mirror.end()

    assert len([batch async for batch in subscription.batches()]) == 1
