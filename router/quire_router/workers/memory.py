"""The memory that all workers of a router see: one slot for each, which that worker alone writes.

    slot    status | replica rows | values of metrics | view | prompts it has sent

Everything is aligned 8-byte words: a reader finds the old or the new one, never a half. What takes
several words is either only added to, with its end stored last, or carries a checksum. So there are
no locks, nobody ever waits for another worker, and one that is killed leaves nothing half done.

The memory is anonymous and inherited over `fork`: no file stays behind, and none must be writable.
Slots outlive their workers: one that is started anew goes on counting where the last one ended.
"""

import enum
import mmap
from dataclasses import dataclass
from typing import TypeAlias

from quire_router.replica_account import Cells, ReplicaCounts, Trail

Words: TypeAlias = "memoryview[int]"
Bytes: TypeAlias = "memoryview[int]"

WORD_BYTES = 8
MAX_REPLICAS = 1024
"""Rows of a worker; replicas beyond are served, but not told of to the others."""
ADDRESS_WORDS = 35
MAX_ADDRESS_BYTES = (ADDRESS_WORDS - 1) * WORD_BYTES
MAX_VALUES = 8192
VALUE_NAMES_BYTES = 1 << 20
VIEW_BYTES = 1 << 20
RING_WORDS = 1 << 16


class Status(enum.IntEnum):
    """Words that say how a worker is."""

    PID = 0
    """0: no process has this slot now."""
    FLAGS = 1
    BEATS = 2
    """Grows as long as the worker's event loop runs."""
    NUM_DECISIONS = 3
    ROWS_VERSION = 4
    """Grows whenever a row gets or loses its replica."""
    VALUE_NAMES_END = 5
    """Bytes of names that are complete."""
    NUM_VIEWS = 6
    RING_END = 7
    """Words ever written to the ring."""
    NUM_READY = 8
    """Replicas that it can send requests to."""
    NUM_ROWS = 10
    """Rows that were ever used."""
    NUM_OPEN = 9
    """Connections that it has accepted and that are open."""


class Flag(enum.IntFlag):
    """What a worker can say of itself."""

    SYNCED = 1
    """Every source has told it which replicas there are."""
    SERVING = 2
    """It accepts connections."""


class Common(enum.IntEnum):
    """Words that the supervisor writes, but for one."""

    NUM_RESTARTS = 0
    ENDED_CPU_S = 1
    """Processor time of the workers that have ended; a float."""
    SHOWN_CPU_S = 3
    """The most processor time that a scrape has shown; a float. Written by whoever is scraped."""
    SUPERVISOR = 2
    """Its process id."""


class RowField(enum.IntEnum):
    """Where a row's parts begin, in words."""

    STATE = 0
    SENT = 1
    OWN = 2
    ADDRESS = 3
    COUNTS = ADDRESS + ADDRESS_WORDS
    TRAIL = COUNTS + ReplicaCounts.NUM_CELLS
    END = TRAIL + Trail.NUM_CELLS


COMMON_WORDS = 16
STATUS_WORDS = 16
_ROWS = STATUS_WORDS
_VALUES = _ROWS + MAX_REPLICAS * RowField.END
_VALUE_NAMES = _VALUES + MAX_VALUES
_VIEWS = _VALUE_NAMES + VALUE_NAMES_BYTES // WORD_BYTES
_RING = _VIEWS + 2 * VIEW_BYTES // WORD_BYTES
SLOT_WORDS = _RING + RING_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One worker's part, and where in it things are."""

    number: int
    words: Words
    numbers: Cells
    """The same memory as floats."""
    rows_at: int = _ROWS
    values: Cells
    value_names: Bytes
    views: tuple[Bytes, Bytes]
    """Written in turns."""
    ring: Words

    @property
    def is_live(self) -> bool:
        """Whether a process has it."""
        return bool(self.words[Status.PID])

    @property
    def flags(self) -> Flag:
        return Flag(self.words[Status.FLAGS])

    @property
    def num_ready(self) -> int:
        """Replicas that its worker can send requests to."""
        return self.words[Status.NUM_READY]


class WorkerMemory:
    """All slots. Created by the supervisor before it starts workers."""

    def __init__(self, num_workers: int) -> None:
        """All zeros; pages take memory once they are written to."""
        size = (COMMON_WORDS + num_workers * SLOT_WORDS) * WORD_BYTES
        data = memoryview(mmap.mmap(-1, size))
        self.common: Words = data.cast("Q")[:COMMON_WORDS]
        self.common_numbers: Cells = data.cast("d")[:COMMON_WORDS]
        self.slots = [_slot(data, number) for number in range(num_workers)]

    @property
    def live(self) -> list[Slot]:
        """The slots that processes have now."""
        return [slot for slot in self.slots if slot.is_live]


def _slot(data: Bytes, number: int) -> Slot:
    begin = (COMMON_WORDS + number * SLOT_WORDS) * WORD_BYTES
    own = data[begin : begin + SLOT_WORDS * WORD_BYTES]
    words, numbers = own.cast("Q"), own.cast("d")
    names_at, views_at = _VALUE_NAMES * WORD_BYTES, _VIEWS * WORD_BYTES
    return Slot(
        number=number,
        words=words,
        numbers=numbers,
        values=numbers[_VALUES : _VALUES + MAX_VALUES],
        value_names=own[names_at : names_at + VALUE_NAMES_BYTES],
        views=(
            own[views_at : views_at + VIEW_BYTES],
            own[views_at + VIEW_BYTES : views_at + 2 * VIEW_BYTES],
        ),
        ring=words[_RING:SLOT_WORDS],
    )
