"""The load of a replica as a worker sees it: its own and that of the other workers."""

from collections.abc import Sequence

from quire_engine.rpc import engine_pb2 as pb
from quire_router.load import ReplicaLoad, Sent
from quire_router.workers.rows import BLOCK_BITS, BLOCK_MASK, REQUEST_BITS, REQUEST_MASK, Row


class Others:
    """The rows that other workers have of one replica."""

    def __init__(self) -> None:
        self.rows: Sequence[Row] = ()

    def sent(self) -> int:
        """Return the sum of their words: tokens and requests that no report includes yet."""
        total = 0
        for row in self.rows:
            total += row.words[row.sent_at]
        return total

    def own(self) -> int:
        """Return the sum of their words: requests in flight, and blocks in no report yet."""
        total = 0
        for row in self.rows:
            total += row.words[row.own_at]
        return total


class SharedLoad(ReplicaLoad):
    """Tells the others what this worker sends, and counts in what they have sent."""

    def __init__(self, row: Row, others: Others) -> None:
        super().__init__()
        self._row = row
        self._others = others
        row.clear_load()

    @property
    def queued_tokens(self) -> int:
        return super().queued_tokens + (self._others.sent() >> REQUEST_BITS)

    @property
    def num_active(self) -> int:
        report = self.report
        sent = len(self._sent) + (self._others.sent() & REQUEST_MASK)
        own = self.num_own + (self._others.own() >> BLOCK_BITS)
        return max(int(report.num_running + report.num_waiting) + sent, own)

    @property
    def num_used_blocks(self) -> int:
        return super().num_used_blocks + (self._others.own() & BLOCK_MASK)

    def sent(self, ticket: int, sent: Sent) -> None:
        super().sent(ticket, sent)
        self._tell()

    def started(self, ticket: int) -> None:
        super().started(ticket)
        self._tell()

    def ended(self, ticket: int) -> None:
        super().ended(ticket)
        self._tell()

    def reported(self, report: pb.Load, now: float) -> None:
        super().reported(report, now)
        if self._sent or self._row.words[self._row.sent_at]:
            self._tell()

    def _tell(self) -> None:
        self._row.set_sent(num_tokens=self._sent_tokens, num_requests=len(self._sent))
        self._row.set_own(num_requests=self.num_own, num_blocks=self._sent_blocks)
