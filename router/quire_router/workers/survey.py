"""What all workers together know, have in flight and have counted; the same whoever looks.

A replica's own state is taken from one worker, the one that sees it best: its load is not three
times what it is because three workers see it. What workers themselves did there is added up.
"""

from collections.abc import Sequence

from quire_router.discovery_status import DiscoveryStatus
from quire_router.replica import ReplicaState
from quire_router.replica_account import ReplicaCounts, Trail
from quire_router.replica_reports import RequestReport
from quire_router.replica_view import ReplicaFacts, ReplicaView
from quire_router.workers.memory import WorkerMemory
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


class Survey:
    """Reads all slots."""

    def __init__(self, memory: WorkerMemory) -> None:
        self._workers = [(slot, Rows(slot), Views(slot)) for slot in memory.slots]

    def replicas(self) -> list[ReplicaView]:
        """Return every replica that a worker knows, by address."""
        seen: dict[str, list[tuple[ReplicaFacts, Row | None]]] = {}
        for slot, rows, views in self._workers:
            if slot.is_live:
                own = rows.by_address()
                for facts in views.last().replicas:
                    seen.setdefault(facts.address, []).append((facts, own.get(facts.address)))
        tables = [rows.by_address() for _, rows, _ in self._workers]
        return [
            _merged(
                min(seen[address], key=lambda pair: RANKS[pair[0].state]),
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


def _merged(best: tuple[ReplicaFacts, Row | None], rows: Sequence[Row]) -> ReplicaView:
    facts, row = best
    counts = ReplicaCounts()
    for other in rows:
        counts.add(other.counts)
    num_sent = sum(other.num_sent_tokens for other in rows)
    return ReplicaView(
        facts=facts,
        counts=counts,
        trail=Trail() if row is None else row.trail,
        num_in_flight=sum(other.num_own for other in rows),
        queued_tokens=int(facts.report.num_waiting_uncached_tokens) + num_sent,
    )
