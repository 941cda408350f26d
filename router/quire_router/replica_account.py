"""What is kept of a replica over its connections: its counts, and its last minutes.

Both are numbers in buffers of 8-byte floats, which may lie in memory that other processes read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from quire_engine.rpc import engine_pb2 as pb
from quire_router.failure import Verdict
from quire_router.load import ReplicaLoad
from quire_router.replica_reports import History

SAMPLE_S = 1.0
NUM_SAMPLES = 180
VERDICTS = tuple(Verdict)

Cells: TypeAlias = "memoryview[float]"


def cells(num: int) -> Cells:
    """Return so many zeros that this process alone sees."""
    return memoryview(bytearray(8 * num)).cast("d")


class _Count:
    """A whole number in one cell of what it is an attribute of."""

    def __init__(self, position: int) -> None:
        self._position = position

    def __get__(self, counts: "ReplicaCounts", _owner: type) -> int:
        return int(counts.cells[self._position])

    def __set__(self, counts: "ReplicaCounts", value: int) -> None:
        counts.cells[self._position] = value


class ReplicaCounts:
    """Totals of one replica, over reconnects."""

    num_dispatched = _Count(0)
    num_connections = _Count(1)
    num_kv_subscriptions = _Count(2)
    num_prompt_tokens = _Count(3)
    num_expected_cached_tokens = _Count(4)
    """Prompt tokens that decisions expected to be cached."""
    num_cached_tokens = _Count(5)
    """Prompt tokens that the engine found cached."""
    num_completion_tokens = _Count(6)
    num_cancelled = _Count(7)
    num_first_tokens = _Count(8)
    _FIRST_TOKEN_S = 9
    _FAILURES = 10
    NUM_CELLS = _FAILURES + len(VERDICTS)

    def __init__(self, own: "Cells | None" = None) -> None:
        """`own` are NUM_CELLS cells to go on with."""
        self.cells = cells(self.NUM_CELLS) if own is None else own

    @property
    def first_token_s(self) -> float:
        """Times from sending a request to its first token, added up."""
        return float(self.cells[self._FIRST_TOKEN_S])

    @property
    def num_failures(self) -> dict[Verdict, int]:
        """Requests that the replica did not serve, by why."""
        return {verdict: int(num) for verdict, num in self._failures()}

    def first_token(self, elapsed_s: float) -> None:
        """Count a first token."""
        self.num_first_tokens += 1
        self.cells[self._FIRST_TOKEN_S] += elapsed_s

    def failed(self, verdict: Verdict) -> None:
        """Count a request that the replica did not serve."""
        self.cells[self._FAILURES + VERDICTS.index(verdict)] += 1

    def add(self, other: "ReplicaCounts") -> None:
        """Add what another process has counted."""
        for position, number in enumerate(other.cells):
            self.cells[position] += number

    def _failures(self) -> Iterator[tuple[Verdict, float]]:
        return zip(VERDICTS, self.cells[self._FAILURES : self.NUM_CELLS], strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One replica at one moment of the last minutes."""

    tokens_per_s: float
    waiting: int
    kv_usage: float


class Trail:
    """The last samples of one replica: a ring of columns, and how many samples were ever added."""

    NUM_CELLS = 1 + 3 * NUM_SAMPLES

    def __init__(self, own: "Cells | None" = None) -> None:
        """`own` are NUM_CELLS cells to go on with."""
        self._cells = cells(self.NUM_CELLS) if own is None else own
        self._epoch = 0
        self._num_tokens = 0
        self._at = 0.0

    @property
    def tokens_per_s(self) -> float:
        num_added = int(self._cells[0])
        return float(self._cells[_position(num_added - 1)]) if num_added else 0.0

    def add(self, load: pb.Load, now: float) -> None:
        """Take a sample of a replica's last report."""
        num_added = int(self._cells[0])
        at = _position(num_added)
        rate = self._rate(load.epoch, load.num_generated_tokens, now)
        self._cells[at] = rate
        self._cells[at + NUM_SAMPLES] = load.num_waiting
        self._cells[at + 2 * NUM_SAMPLES] = kv_usage(load)
        self._cells[0] = num_added + 1

    def history(self) -> History:
        tokens_per_s, waiting, usage = (self._column(number) for number in range(3))
        return History(
            interval_s=SAMPLE_S,
            tokens_per_s=tokens_per_s,
            waiting=[int(num) for num in waiting],
            kv_usage=usage,
        )

    def _column(self, number: int) -> list[float]:
        """Return one quantity's samples, oldest first."""
        begin = 1 + number * NUM_SAMPLES
        num_added = int(self._cells[0])
        ring = list(self._cells[begin : begin + NUM_SAMPLES])
        if num_added < NUM_SAMPLES:
            return ring[:num_added]
        oldest = num_added % NUM_SAMPLES
        return ring[oldest:] + ring[:oldest]

    def _rate(self, epoch: int, num_tokens: int, now: float) -> float:
        """Return the tokens per second since the last sample."""
        if not epoch:
            return 0.0  # not connected: its count goes on from where it was
        rate = 0.0
        # Another process counts from zero, and what it did before we saw it took unknown time.
        if epoch == self._epoch:
            rate = round((num_tokens - self._num_tokens) / max(now - self._at, 1e-3), 1)
        self._epoch, self._num_tokens, self._at = epoch, num_tokens, now
        return rate


class Account:
    """All of it, for a replica that this process alone serves requests from."""

    def __init__(self) -> None:
        self.counts = ReplicaCounts()
        self.trail = Trail()

    def new_load(self) -> ReplicaLoad:
        """Return the load of a connection that has just begun."""
        return ReplicaLoad()

    def close(self) -> None:
        """The replica is gone."""


def kv_usage(load: pb.Load) -> float:
    """Return the share of the KV blocks that live requests use."""
    return round(load.num_used_blocks / (load.num_total_blocks or 1), 4)


def _position(number: int) -> int:
    """Return the cell of the first column that a sample is in."""
    return 1 + number % NUM_SAMPLES
