"""Keeps the other workers informed of a pool, and this one of what they say."""

import asyncio
from collections.abc import Sequence, Sized

from quire_router.decisions import DecisionLog
from quire_router.discovery_status import DiscoveryStatus
from quire_router.pool import Pool
from quire_router.replica import Replica, is_ready
from quire_router.replica_reports import RequestReport
from quire_router.replica_view import ReplicaFacts, ReplicaView
from quire_router.reporting import request_report
from quire_router.workers.reporting import SurveyReports
from quire_router.workers.share import WorkerShare
from quire_router.workers.sources import SourceFacts
from quire_router.workers.views import WorkerView

PUBLISH_S = 0.25


class Publisher:
    """What a dispatcher does for the sake of other workers; `run` must be running."""

    def __init__(
        self,
        share: WorkerShare,
        pool: Pool,
        sources: Sequence[DiscoveryStatus],
        decisions: DecisionLog,
        parked: Sized,
    ) -> None:
        self.reports = SurveyReports(share.survey)
        self._share = share
        self._pool = pool
        self._sources = sources
        self._decisions = decisions
        self._parked = parked
        self._revision = 0
        self._requests: dict[int, RequestReport] = {}
        self._is_due = False

    async def run(self) -> None:
        """Publish every now and then until cancelled."""
        while True:
            self.listen()
            self.publish()
            await asyncio.sleep(PUBLISH_S)

    def publish(self) -> None:
        """Let the others see what this worker sees."""
        self._is_due = False
        replicas = self._pool.replicas
        view = WorkerView(
            replicas=[ReplicaFacts.of(replica) for replica in replicas],
            requests=self._last_requests(),
            sources=[SourceFacts.of(status) for status in self._sources if status.can_go_stale],
            num_parked=len(self._parked),
        )
        self._share.publish(
            view, is_synced=self._pool.is_synced, num_ready=sum(map(is_ready, replicas))
        )

    def publish_soon(self) -> None:
        """Publish once all that happens now has happened."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.publish)

    def listen(self) -> None:
        """Take in what others have sent, before a decision."""
        self._share.listen(self._pool.by_address)

    def sent(self, replica: Replica, hashes: Sequence[int]) -> None:
        """Tell the others of a prompt that was sent to a replica."""
        self._share.sent(replica, hashes)

    def replicas(self) -> list[ReplicaView]:
        """Return every replica as all workers see it."""
        return self._share.survey.replicas()

    def sources(self) -> list[DiscoveryStatus]:
        """Return the sources of replicas as all workers follow them."""
        return self._share.survey.sources()

    @property
    def are_synced(self) -> bool:
        """Whether every worker that serves knows which replicas there are."""
        return self._share.are_synced

    @property
    def are_ready(self) -> bool:
        """Whether every worker that serves can send requests to a replica."""
        return self._share.are_ready

    def _last_requests(self) -> list[RequestReport]:
        # A report takes longer to write than to publish, and most have not changed.
        for decision in self._decisions.since(self._revision):
            self._requests[decision.number] = request_report(decision)
        self._revision = self._decisions.revision
        numbers = {decision.number for decision in self._decisions.since(0)}
        self._requests = {key: self._requests[key] for key in self._requests if key in numbers}
        return list(self._requests.values())
