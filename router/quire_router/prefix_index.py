"""Which blocks a replica has cached, as far as its router knows.

Block hashes are cumulative (`rpc/prefix.py`): a block's hash stands for everything up to it. So the
known blocks of a replica are a plain set, and the cached length of a prompt is a binary search over
its hashes.

Three sets answer together:

    exact     what the engine's KV events say
    recent    prompts sent there since the last turn: their blocks will be cached in a moment
    older     recent, one turn ago

A turn forgets `older`. In exact mode it comes every SPECULATION_S, so a guess lives between one and
two of them, and the engine's word replaces it. Without events (degraded mode) history is all there
is: a turn comes when `recent` holds as many blocks as the engine does, because a history shorter
than the cache costs far more than one that is too long.
"""

import enum
from collections.abc import Sequence

from quire_engine.rpc import engine_pb2 as pb

SPECULATION_S = 2.0


class IndexMode(enum.Enum):
    """Where the knowledge comes from."""

    EXACT = "exact"
    DEGRADED = "degraded"
    OFF = "off"
    """The engine caches no prefixes."""


class KvGapError(Exception):
    """Events were lost; only a new snapshot helps."""


class PrefixIndex:
    """The cached blocks of one replica."""

    def __init__(self) -> None:
        self.mode = IndexMode.OFF
        self.updated_at = 0.0
        self._epoch = 0
        self._max_blocks = 0
        self._seq: int | None = None
        self._snapshot: set[int] = set()
        self._exact: set[int] = set()
        self._recent: set[int] = set()
        self._older: set[int] = set()
        self._turned_at = 0.0

    def __len__(self) -> int:
        """Return how many entries are held, guesses included."""
        return len(self._exact) + len(self._recent) + len(self._older)

    @property
    def num_known(self) -> int:
        """Blocks that the engine said it has; without its word, those in history."""
        return len(self._exact) if self.mode is IndexMode.EXACT else len(self)

    def connect(self, *, epoch: int, num_blocks: int, is_enabled: bool) -> None:
        """Begin with an engine process; what an earlier process had cached is forgotten."""
        if epoch != self._epoch:
            self._forget()
        self._epoch = epoch
        self._max_blocks = num_blocks
        self.subscribe()
        self.mode = IndexMode.DEGRADED if is_enabled else IndexMode.OFF

    def subscribe(self) -> None:
        """Expect a snapshot next; until it is complete the last known state serves as history."""
        self._seq = None
        self._snapshot = set()
        self._older |= self._exact
        self._exact = set()
        if self.mode is IndexMode.EXACT:
            self.mode = IndexMode.DEGRADED

    def apply(self, batch: pb.KvEventBatch, now: float) -> None:
        """Take over one message of the engine's event stream.

        Raises:
            KvGapError: messages are missing, or they come from another engine process.
        """
        if batch.epoch != self._epoch:
            raise KvGapError(f"events are of epoch {batch.epoch}, expected {self._epoch}")
        if self._seq is None:
            self._take_snapshot(batch)
        else:
            self._take_changes(batch)
        self.updated_at = now

    def num_cached(self, hashes: Sequence[int]) -> int:
        """Return how many leading blocks of a prompt are cached; O(log len(hashes))."""
        if self.mode is IndexMode.OFF:
            return 0
        exact, recent, older = self._exact, self._recent, self._older
        low, high = 0, len(hashes)
        while low < high:
            # The first probe is the first block: most prompts match nowhere.
            middle = (low + high + 1) // 2 if low else 1
            block = hashes[middle - 1]
            if block in exact or block in recent or block in older:
                low = middle
            elif low:
                high = middle - 1
            else:
                return 0
        return low

    def speculate(self, hashes: Sequence[int], now: float) -> None:
        """Expect the blocks of a prompt that was just sent there."""
        if self.mode is IndexMode.OFF:
            return
        is_full = len(self._recent) >= max(self._max_blocks, 1)
        if is_full or (self.mode is IndexMode.EXACT and now - self._turned_at >= SPECULATION_S):
            self._turn(now)
        self._recent.update(hashes)

    def expire(self, now: float) -> None:
        """Forget guesses that are too old; called now and then, for when nothing is dispatched."""
        if self.mode is IndexMode.EXACT and now - self._turned_at >= SPECULATION_S:
            self._turn(now)

    def _turn(self, now: float) -> None:
        self._older = self._recent
        self._recent = set()
        self._turned_at = now

    def _take_snapshot(self, batch: pb.KvEventBatch) -> None:
        self._snapshot.update(batch.snapshot)
        if batch.snapshot_continues:
            return
        self._seq = batch.seq
        self._exact = self._snapshot
        self._snapshot = set()
        # History from before the snapshot may be wrong; what was sent just now stays a guess.
        self._older = set()
        self.mode = IndexMode.EXACT

    def _take_changes(self, batch: pb.KvEventBatch) -> None:
        assert self._seq is not None, "changes come after a snapshot"
        if batch.seq != self._seq + 1:
            raise KvGapError(f"batch {batch.seq} came after {self._seq}")
        self._seq = batch.seq
        if batch.cleared:
            self._exact.clear()
            self._recent.clear()
            self._older.clear()
        for stored in batch.stored:
            self._exact.update(stored.hashes)
        if batch.removed:
            for known in (self._exact, self._recent, self._older):
                known.difference_update(batch.removed)
        self._check_bound()

    def _check_bound(self) -> None:
        # An engine cannot cache more blocks than it has; more means that removals were lost.
        if self._max_blocks and len(self._exact) > 2 * self._max_blocks:
            raise KvGapError(f"{len(self._exact)} blocks are known of {self._max_blocks}")

    def _forget(self) -> None:
        for known in (self._exact, self._recent, self._older):
            known.clear()
