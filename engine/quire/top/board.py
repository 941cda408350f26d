"""What is known of a router's replicas, and how old it is. Pure: times are given."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from quire_router.replica_reports import ReplicaReport, RequestReport

NUM_SAMPLES = 180
MAX_REQUESTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """The content of one event of `/v1/replicas/events`, and of `GET /v1/replicas`."""

    at: float
    parked: int
    replicas: list[ReplicaReport]
    requests: list[RequestReport]

    @classmethod
    def parse(cls, data: str | bytes) -> "News":
        """Read JSON; fields that are unknown here are left out.

        Raises:
            ValueError: it is something else; the message says where.
        """
        return msgspec.json.decode(data, type=cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why there is no news, and when that changes at the earliest."""

    reason: str
    retry_at: float


class Board:
    """The last news, with what is remembered of older ones."""

    def __init__(self) -> None:
        self.replicas: Sequence[ReplicaReport] = ()
        self.parked = 0
        self.heard_at: float | None = None
        """None: never yet."""
        self.trouble: Trouble | None = None
        self._rates: dict[str, deque[float]] = {}
        self._requests: dict[int, RequestReport] = {}

    @property
    def requests(self) -> list[RequestReport]:
        """The last ones, newest first."""
        return sorted(self._requests.values(), key=lambda request: -request.number)

    def rates(self, replica: str) -> Sequence[float]:
        """Return the tokens per second of the last seconds, oldest first."""
        return self._rates.get(replica, ())

    def take(self, news: News, now: float, *, is_snapshot: bool) -> None:
        """Show this from now on. A snapshot is the whole, also of what came before."""
        self.heard_at, self.trouble = now, None
        self.replicas, self.parked = news.replicas, news.parked
        self._rates = {report.replica: self._followed(report) for report in news.replicas}
        if is_snapshot:
            self._requests.clear()
        self._keep(news.requests)

    def lose(self, reason: str, now: float, *, retry_in_s: float) -> None:
        """Keep what is shown, as of the last news."""
        self.trouble = Trouble(reason=reason, retry_at=now + retry_in_s)

    def _followed(self, report: ReplicaReport) -> deque[float]:
        if report.history is not None:
            return deque(report.history.tokens_per_s, maxlen=NUM_SAMPLES)
        rates = self._rates.get(report.replica) or deque(maxlen=NUM_SAMPLES)
        rates.append(report.tokens_per_s)
        return rates

    def _keep(self, requests: Iterable[RequestReport]) -> None:
        self._requests |= {request.number: request for request in requests}
        for number in sorted(self._requests)[:-MAX_REQUESTS]:
            del self._requests[number]
