"""Reports of a router that has workers: of all of them, whichever answers."""

from quire_router.decisions import CAPACITY
from quire_router.replica_reports import ReplicaReport, RequestReport
from quire_router.reporting import report
from quire_router.workers.survey import Survey


class SurveyReports:
    """Implements `generation.Reports`."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._revision = 0
        self._requests: dict[int, tuple[RequestReport, int]] = {}

    @property
    def revision(self) -> int:
        """Grows whenever a request's report changes."""
        self._follow()
        return self._revision

    @property
    def num_parked(self) -> int:
        """Requests that wait because no replica can take them."""
        return self._survey.num_parked

    def replicas(self, *, with_history: bool = False) -> list[ReplicaReport]:
        """Return what is known of every replica, by address."""
        views = self._survey.replicas()
        return [report(view, with_history=with_history) for view in views]

    def requests(self, since: int = 0) -> list[RequestReport]:
        """Return the last requests that are new or have changed since a revision, oldest first."""
        self._follow()
        return [request for request, revision in self._requests.values() if revision > since]

    def _follow(self) -> None:
        followed: dict[int, tuple[RequestReport, int]] = {}
        for request in self._survey.requests(CAPACITY):
            known = self._requests.get(request.number)
            if known is None or known[0] != request:
                self._revision += 1
                known = request, self._revision
            followed[request.number] = known
        self._requests = followed
