"""The load table: what each worker has in flight at each replica, and has counted there.

A worker has one row per replica, in a slot that it alone writes. Readers find rows by the address
in them and add up; whose row it is does not matter.
"""

import enum
import struct

from quire_router.replica_account import ReplicaCounts, Trail
from quire_router.workers.memory import (
    ADDRESS_WORDS,
    MAX_ADDRESS_BYTES,
    MAX_REPLICAS,
    RowField,
    Slot,
    Status,
)

REQUEST_BITS = 24
REQUEST_MASK = (1 << REQUEST_BITS) - 1
BLOCK_BITS = 32
BLOCK_MASK = (1 << BLOCK_BITS) - 1


class RowState(enum.IntEnum):
    """Whether a row has a replica."""

    FREE = 0
    LIVE = 1
    GONE = 2
    """Its replica left. What was counted stays: other workers may still show the replica."""


class Row:
    """One replica of one worker."""

    def __init__(self, slot: Slot, number: int) -> None:
        self.slot = slot
        self.number = number
        self.words = slot.words
        self._at = at = slot.rows_at + number * RowField.END
        self._trail_at = at + RowField.TRAIL
        self.sent_at = at + RowField.SENT
        """Where its words of load are; read for every decision, hence without a call."""
        self.own_at = at + RowField.OWN

    @property
    def state(self) -> RowState:
        return RowState(self.words[self._at])

    @property
    def address(self) -> str:
        begin = self._at + RowField.ADDRESS
        data = self.words[begin : begin + ADDRESS_WORDS].tobytes()
        (size,) = struct.unpack_from("=Q", data)
        return data[8 : 8 + size].decode(errors="replace")

    @property
    def counts(self) -> ReplicaCounts:
        return ReplicaCounts(self.slot.numbers[self._at + RowField.COUNTS : self._trail_at])

    @property
    def trail(self) -> Trail:
        return Trail(self.slot.numbers[self._trail_at : self._at + RowField.END])

    @property
    def num_own(self) -> int:
        """Requests that this worker has there."""
        return self.words[self.own_at] >> BLOCK_BITS

    @property
    def num_sent_tokens(self) -> int:
        """Prompt tokens that it has sent there, and that no report includes yet."""
        return self.words[self.sent_at] >> REQUEST_BITS

    def set_sent(self, *, num_tokens: int, num_requests: int) -> None:
        self.words[self.sent_at] = num_tokens << REQUEST_BITS | num_requests

    def set_own(self, *, num_requests: int, num_blocks: int) -> None:
        self.words[self.own_at] = num_requests << BLOCK_BITS | num_blocks

    def clear_load(self) -> None:
        """Say that nothing is in flight."""
        self.words[self.sent_at] = self.words[self.own_at] = 0

    def take(self, address: str) -> None:
        """Give it to a replica, with nothing counted."""
        data = address.encode()
        words = self.words
        for at in range(self._at + RowField.STATE, self._at + RowField.END):
            words[at] = 0
        padded = data.ljust(MAX_ADDRESS_BYTES, b"\0")
        begin = self._at + RowField.ADDRESS
        words[begin] = len(data)
        for at, word in enumerate(struct.unpack(f"={ADDRESS_WORDS - 1}Q", padded), begin + 1):
            words[at] = word
        self.set_state(RowState.LIVE)

    def set_state(self, state: RowState) -> None:
        self.words[self._at] = state
        self.words[Status.ROWS_VERSION] += 1


class Rows:
    """The rows of one worker, for itself and for others."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._version = -1
        self._by_address: dict[str, Row] = {}
        self._addresses: dict[int, str] = {}

    def by_address(self) -> dict[str, Row]:
        """Return the rows that have, or had, a replica."""
        version = self._slot.words[Status.ROWS_VERSION]
        if version != self._version:
            taken = (row for row in self._all() if row.state is not RowState.FREE)
            self._by_address = {row.address: row for row in taken}
            self._addresses = {row.number: name for name, row in self._by_address.items()}
            self._version = version
        return self._by_address

    def address(self, number: int) -> str:
        """Return the address of the replica that a row has; empty when it has none."""
        self.by_address()
        return self._addresses.get(number, "")

    def claim(self, address: str) -> Row | None:
        """Return a row for a replica, the one it had if it had one; None when all are taken.

        Only for the slot's own worker.
        """
        if len(address.encode()) > MAX_ADDRESS_BYTES:
            return None
        row = self.by_address().get(address)
        if row is not None:
            row.clear_load()
            row.set_state(RowState.LIVE)
            return row
        row = self._unused() or self._first(RowState.GONE)
        if row is not None:
            row.take(address)
        return row

    def release_all(self) -> None:
        """Say that nothing is in flight, and that no replica is known; the counts stay."""
        for row in self.by_address().values():
            row.clear_load()
            row.set_state(RowState.GONE)

    def _unused(self) -> Row | None:
        number = self._slot.words[Status.NUM_ROWS]
        if number == MAX_REPLICAS:
            return None
        self._slot.words[Status.NUM_ROWS] = number + 1
        return Row(self._slot, number)

    def _first(self, state: RowState) -> Row | None:
        return next((row for row in self._all() if row.state is state), None)

    def _all(self) -> list[Row]:
        return [Row(self._slot, number) for number in range(self._slot.words[Status.NUM_ROWS])]
