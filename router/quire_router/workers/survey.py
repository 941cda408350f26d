"""What all workers together know, have in flight and have counted; the same whoever looks.

A replica's load is taken from one worker, the one that sees it best: it is not three times what it
is because three workers see it. Its state is the worst that a serving worker sees: it is up when
all can send it requests. What workers themselves did there is added up.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from quire_router.discovery_status import DiscoveryStatus
from quire_router.replica import ReplicaState
from quire_router.replica_account import ReplicaCounts, Trail
from quire_router.replica_reports import RequestReport
from quire_router.replica_view import ReplicaFacts, ReplicaView
from quire_router.workers.memory import Flag, WorkerMemory
from quire_router.workers.rows import Row, Rows
from quire_router.workers.sources import merged
from quire_router.workers.views import Views

BEST_FIRST = (
    ReplicaState.READY,
    ReplicaState.DRAINING,
    ReplicaState.UNHEALTHY,
    ReplicaState.UNRESPONSIVE,
    ReplicaState.CONNECTING,
)
RANKS = {state: rank for rank, state in enumerate(BEST_FIRST)}


class Seen(NamedTuple):
    """A replica as one worker sees it."""

    facts: ReplicaFacts
    row: Row | None
    is_serving: bool


class Survey:
    """Reads all slots."""

    def __init__(self, memory: WorkerMemory) -> None:
        self._workers = [(slot, Rows(slot), Views(slot)) for slot in memory.slots]

    def replicas(self) -> list[ReplicaView]:
        """Return every replica that a worker knows, by address."""
        seen: dict[str, list[Seen]] = {}
        for slot, rows, views in self._workers:
            if slot.is_live:
                own, is_serving = rows.by_address(), Flag.SERVING in slot.flags
                for facts in views.last().replicas:
                    found = Seen(facts, own.get(facts.address), is_serving)
                    seen.setdefault(facts.address, []).append(found)
        tables = [rows.by_address() for _, rows, _ in self._workers]
        return [
            _merged(
                seen[address],
                [table[address] for table in tables if address in table],
            )
            for address in sorted(seen)
        ]

    def sources(self) -> list[DiscoveryStatus]:
        """Return the sources that replicas are found in."""
        return merged(
            [views.last().sources for slot, _, views in self._workers if slot.is_live],
            [views.last().sources for slot, _, views in self._workers if not slot.is_live],
        )

    def requests(self, limit: int) -> list[RequestReport]:
        """Return the last requests of all workers, oldest first."""
        views = [views.last() for slot, _, views in self._workers if slot.is_live]
        requests = [request for view in views for request in view.requests]
        return sorted(requests, key=lambda request: (request.at, request.number))[-limit:]

    @property
    def num_parked(self) -> int:
        """Requests that wait because no replica can take them."""
        return sum(views.last().num_parked for slot, _, views in self._workers if slot.is_live)


def _merged(seen: Sequence[Seen], rows: Sequence[Row]) -> ReplicaView:
    best = min(seen, key=lambda found: RANKS[found.facts.state])
    serving = [found for found in seen if found.is_serving] or seen
    state = max((found.facts.state for found in serving), key=RANKS.__getitem__)
    counts = ReplicaCounts()
    for other in rows:
        counts.add(other.counts)
    num_sent = sum(other.num_sent_tokens for other in rows)
    return ReplicaView(
        facts=replace(best.facts, state=state),
        counts=counts,
        trail=Trail() if best.row is None else best.row.trail,
        num_in_flight=sum(other.num_own for other in rows),
        queued_tokens=int(best.facts.report.num_waiting_uncached_tokens) + num_sent,
    )
