"""Prompts that workers have just sent, told to each other as block hashes.

An engine's events say what it has cached only once it has computed it. Until then a burst with one
prefix stays together because its router remembers where it sent the first; several workers must
remember together, or each would send the prefix to a replica of its own. Where an engine sends no
events, what was sent is all that is known, and workers that keep that apart find half as much.

    ring      record, record, ..., 0 (go on at the beginning)
    record    checksum, row << 32 | number of hashes, hashes

A reader that falls behind by a whole ring skips what it has missed: these are hints.
"""

from array import array
from collections.abc import Iterator, Sequence

import xxhash

from quire_router.workers.memory import RING_WORDS, Slot, Status

MAX_RECORD_WORDS = RING_WORDS // 8
HEAD_WORDS = 2
COUNT_BITS = 32
COUNT_MASK = (1 << COUNT_BITS) - 1


class SentPrompts:
    """The ring of one worker, for itself and for others."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._ring = slot.ring
        self._read_to: int = slot.words[Status.RING_END]

    def add(self, row: int, hashes: Sequence[int]) -> None:
        """Tell of a prompt that was sent to the replica of a row. For the slot's own worker.

        Of a prompt too long for a record the beginning is told.
        """
        words = self._slot.words
        told = hashes[: MAX_RECORD_WORDS - HEAD_WORDS]
        body = array("Q", (row << COUNT_BITS | len(told), *told))
        record = array("Q", (_checksum(body.tobytes()), *body))
        end = words[Status.RING_END]
        at = end % RING_WORDS
        if at + len(record) > RING_WORDS:
            self._ring[at] = 0
            end, at = end + RING_WORDS - at, 0
        self._ring[at : at + len(record)] = memoryview(record)
        words[Status.RING_END] = end + len(record)

    def new(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield rows and hashes since the last call."""
        end = self._slot.words[Status.RING_END]
        at, self._read_to = self._read_to, end
        # The writer may be in the middle of the next record, which overwrites the oldest.
        if end - at > RING_WORDS - MAX_RECORD_WORDS:
            return
        while at < end:
            place = at % RING_WORDS
            if not self._ring[place]:
                at += RING_WORDS - place
                continue
            head = self._ring[place + 1]
            num_words = HEAD_WORDS + (head & COUNT_MASK)
            if num_words > MAX_RECORD_WORDS:
                return
            body = self._ring[place + 1 : place + num_words].tobytes()
            if _checksum(body) != self._ring[place]:
                return
            yield head >> COUNT_BITS, array("Q", body)[1:]
            at += num_words


def _checksum(body: bytes) -> int:
    """Return a checksum that is not 0."""
    return xxhash.xxh3_64_intdigest(body) | 1
