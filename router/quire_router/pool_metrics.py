"""Metrics of the replicas and of the decisions about them.

What is known of a replica is read when Prometheus asks: it costs nothing in between, and the series
of a replica that is gone are gone with it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import Enum

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from quire_router import metric_catalogue as catalogue
from quire_router.metric_catalogue import Declared
from quire_router.policy import Candidate
from quire_router.prefix_index import IndexMode
from quire_router.replica import Replica, ReplicaState
from quire_router.replica_account import VERDICTS
from quire_router.replica_view import ReplicaView
from quire_router.series import Series, SeriesMetric

PREFIX = f"{catalogue.PREFIX}replica_"

READ: dict[str, Callable[[ReplicaView], float]] = {
    "up": lambda v: v.facts.state is ReplicaState.READY,
    "running": lambda v: v.facts.report.num_running,
    "waiting": lambda v: v.facts.report.num_waiting,
    "in_flight": lambda v: v.num_in_flight,
    "queued_tokens": lambda v: v.queued_tokens,
    "kv_usage_ratio": lambda v: (
        v.facts.report.num_used_blocks / (v.facts.report.num_total_blocks or 1)
    ),
    "prefill_tokens_per_second": lambda v: v.facts.report.prefill_tokens_per_s,
    "decode_step_seconds": lambda v: v.facts.report.decode_step_s,
    "load_age_seconds": lambda v: _age_s(v.facts.heard_at),
    "prefix_index_blocks": lambda v: v.facts.num_index_blocks,
    "prefix_index_age_seconds": lambda v: _age_s(v.facts.index_updated_at),
    "breaker_open": lambda v: v.facts.is_breaker_open,
    "requests": lambda v: v.counts.num_dispatched,
    "prompt_tokens": lambda v: v.counts.num_prompt_tokens,
    "expected_cached_tokens": lambda v: v.counts.num_expected_cached_tokens,
    "cached_tokens": lambda v: v.counts.num_cached_tokens,
    "completion_tokens": lambda v: v.counts.num_completion_tokens,
    "cancelled": lambda v: v.counts.num_cancelled,
    "connections": lambda v: v.counts.num_connections,
    "kv_subscriptions": lambda v: v.counts.num_kv_subscriptions,
}
NUMBERS = (*catalogue.REPLICA_NUMBERS, *catalogue.REPLICA_TOTALS)
KINDS: dict[str, Iterable[Enum]] = {
    catalogue.REPLICA_FAILURES.name: VERDICTS,
    catalogue.REPLICA_STATE.name: ReplicaState,
    catalogue.REPLICA_INDEX_MODE.name: IndexMode,
}
"""Values of the last label of families that have more than one series per replica."""
SHOWN = (
    *(*NUMBERS, catalogue.REPLICA_FIRST_TOKEN, catalogue.REPLICA_FAILURES),
    *(catalogue.REPLICA_STATE, catalogue.REPLICA_INDEX_MODE),
)


class DispatchMetrics:
    """What happens between a request and a replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        decision_s = catalogue.DECISION.histogram(registry)
        self._decision_s = {mode: decision_s.labels(mode) for mode in catalogue.DECISION_MODES}
        self._decisions, self._prompt_tokens, self._expected_tokens = (
            {match: counter.labels(match) for match in catalogue.PREFIX_MATCHES}
            for counter in (
                catalogue.DECISIONS.counter(registry),
                catalogue.DECIDED_PROMPT_TOKENS.counter(registry),
                catalogue.DECIDED_EXPECTED_TOKENS.counter(registry),
            )
        )
        self.retries = catalogue.RETRIES.counter(registry)
        self.parked = catalogue.PARKED.gauge(registry)

    def deciding(
        self, replicas: Iterable[Replica], *, is_by_cost: bool
    ) -> AbstractContextManager[object]:
        """Time a decision among these."""
        mode = _decision_mode(replicas) if is_by_cost else "least-requests"
        return self._decision_s[mode].time()

    def decided(
        self, candidates: Sequence[Candidate], chosen: Candidate, num_prompt_tokens: int
    ) -> None:
        """Count a decision, and what it hopes for."""
        most = max(candidate.cached_tokens for candidate in candidates)
        match = "none" if not most else "best" if chosen.cached_tokens == most else "passed_over"
        self._decisions[match].inc()
        self._prompt_tokens[match].inc(num_prompt_tokens)
        self._expected_tokens[match].inc(chosen.cached_tokens)


class ReplicaCollector(Collector):
    """Per-replica series, from what the replicas are at the moment of the scrape."""

    def __init__(self, views: Callable[[], Sequence[ReplicaView]]) -> None:
        self._views = views
        self._addresses: tuple[str, ...] = ()
        self._series: dict[str, list[Series]] = {}

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        views = self._views()
        self._name_series(tuple(view.facts.address for view in views))
        for declared, values in _all_values(views):
            series = self._series[declared.name]
            yield SeriesMetric(declared.family, declared.help, declared.kind, series, values)

    def _name_series(self, addresses: tuple[str, ...]) -> None:
        """Name the series of these replicas, unless they are the same as before."""
        if addresses == self._addresses and self._series:
            return
        self._addresses = addresses
        self._series = {
            declared.name: [
                series for address in addresses for series in _series(declared, address)
            ]
            for declared in SHOWN
        }


def _age_s(since: float) -> float:
    return time.monotonic() - since if since else 0.0


def _decision_mode(replicas: Iterable[Replica]) -> str:
    modes = {replica.index.mode for replica in replicas}
    if IndexMode.DEGRADED in modes:
        return "degraded"
    return "exact" if IndexMode.EXACT in modes else "off"


def _series(declared: Declared, address: str) -> list[Series]:
    """Return the series that one replica has of a family, in the order of `_all_values`."""
    label, *more = declared.labels
    own = {label: address}
    if declared.kind == "summary":
        return [Series.of(f"{declared.name}{part}", own) for part in ("_count", "_sum")]
    if not more:
        return [Series.of(declared.name, own)]
    return [
        Series.of(declared.name, own | {more[0]: value.value}) for value in KINDS[declared.name]
    ]


def _all_values(views: Sequence[ReplicaView]) -> Iterator[tuple[Declared, Sequence[float]]]:
    for declared in NUMBERS:
        read = READ[declared.family.removeprefix(PREFIX)]
        yield declared, [read(view) for view in views]
    counts = [view.counts for view in views]
    first_tokens = [(each.num_first_tokens, each.first_token_s) for each in counts]
    yield catalogue.REPLICA_FIRST_TOKEN, [number for pair in first_tokens for number in pair]
    failures = [num for each in counts for num in each.num_failures.values()]
    yield catalogue.REPLICA_FAILURES, failures
    facts = [view.facts for view in views]
    yield catalogue.REPLICA_STATE, [each.state is state for each in facts for state in ReplicaState]
    modes = [each.index_mode is mode for each in facts for mode in IndexMode]
    yield catalogue.REPLICA_INDEX_MODE, modes
