"""The load of a replica: its own last report, plus what this router has sent it since.

A request that was just sent is in no report for a moment, and a burst decided on stale reports
would all go to one place. So each is counted here until a report that is young enough to include it
arrives, or until its first token does.
"""

from dataclasses import dataclass

from quire_engine.rpc import engine_pb2 as pb

SETTLE_S = 0.1
"""A report includes what was sent this long before it: two intervals of the load stream."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request adds to its replica."""

    uncached_tokens: int
    num_blocks: int
    sent_at: float


class ReplicaLoad:
    """The load of one replica; tickets are unique numbers of requests."""

    def __init__(self) -> None:
        self.report = pb.Load()
        self.num_own = 0
        """Requests that this router has there."""
        self._sent: dict[int, Sent] = {}
        self._sent_tokens = 0
        self._sent_blocks = 0

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens yet to be computed there."""
        return int(self.report.num_waiting_uncached_tokens) + self._sent_tokens

    @property
    def num_active(self) -> int:
        """Requests running or waiting there, of all routers."""
        reported = self.report.num_running + self.report.num_waiting + len(self._sent)
        return max(int(reported), self.num_own)

    @property
    def num_used_blocks(self) -> int:
        return int(self.report.num_used_blocks) + self._sent_blocks

    def sent(self, ticket: int, sent: Sent) -> None:
        self.num_own += 1
        self._sent[ticket] = sent
        self._sent_tokens += sent.uncached_tokens
        self._sent_blocks += sent.num_blocks

    def started(self, ticket: int) -> None:
        """The first token came: the prompt has been computed."""
        self._settle(ticket)

    def ended(self, ticket: int) -> None:
        self.num_own -= 1
        self._settle(ticket)

    def reported(self, report: pb.Load, now: float) -> None:
        """Take over a report. One with the number of the last says nothing new."""
        is_news = (report.epoch, report.seq) != (self.report.epoch, self.report.seq)
        self.report = report
        if is_news:
            self._settle_before(now - SETTLE_S)

    def _settle_before(self, limit: float) -> None:
        while self._sent:
            ticket, sent = next(iter(self._sent.items()))
            if sent.sent_at > limit:
                return
            self._settle(ticket)

    def _settle(self, ticket: int) -> None:
        if (sent := self._sent.pop(ticket, None)) is not None:
            self._sent_tokens -= sent.uncached_tokens
            self._sent_blocks -= sent.num_blocks
