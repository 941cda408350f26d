"""Metrics of the replicas and of the decisions about them.

What is known of a replica is read when Prometheus asks: it costs nothing in between, and the series
of a replica that is gone are gone with it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from quire_router import metric_catalogue as catalogue
from quire_router.metric_catalogue import Declared
from quire_router.policy import Candidate
from quire_router.prefix_index import IndexMode
from quire_router.replica import Replica, ReplicaState
from quire_router.replica_view import ReplicaView

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

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        views = self._views()
        for declared in (*catalogue.REPLICA_NUMBERS, *catalogue.REPLICA_TOTALS):
            yield _numbers(declared, views)
        yield _first_tokens(views)
        yield _failures(views)
        yield _states(views)
        yield _modes(views)


def _age_s(since: float) -> float:
    return time.monotonic() - since if since else 0.0


def _decision_mode(replicas: Iterable[Replica]) -> str:
    modes = {replica.index.mode for replica in replicas}
    if IndexMode.DEGRADED in modes:
        return "degraded"
    return "exact" if IndexMode.EXACT in modes else "off"


def _family(declared: Declared) -> GaugeMetricFamily | CounterMetricFamily:
    type_ = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    return type_(declared.family, declared.help, labels=declared.labels)


def _numbers(declared: Declared, views: Iterable[ReplicaView]) -> Metric:
    family = _family(declared)
    read = READ[declared.family.removeprefix(PREFIX)]
    for view in views:
        family.add_metric([view.facts.address], float(read(view)))
    return family


def _first_tokens(views: Iterable[ReplicaView]) -> Metric:
    declared = catalogue.REPLICA_FIRST_TOKEN
    family = SummaryMetricFamily(declared.name, declared.help, labels=declared.labels)
    for view in views:
        counts = view.counts
        family.add_metric([view.facts.address], counts.num_first_tokens, counts.first_token_s)
    return family


def _failures(views: Iterable[ReplicaView]) -> Metric:
    family = _family(catalogue.REPLICA_FAILURES)
    for view in views:
        for verdict, num in view.counts.num_failures.items():
            family.add_metric([view.facts.address, verdict.value], num)
    return family


def _states(views: Iterable[ReplicaView]) -> Metric:
    family = _family(catalogue.REPLICA_STATE)
    for view in views:
        for state in ReplicaState:
            family.add_metric([view.facts.address, state.value], view.facts.state is state)
    return family


def _modes(views: Iterable[ReplicaView]) -> Metric:
    family = _family(catalogue.REPLICA_INDEX_MODE)
    for view in views:
        for mode in IndexMode:
            family.add_metric([view.facts.address, mode.value], view.facts.index_mode is mode)
    return family
