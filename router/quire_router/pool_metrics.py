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

from quire_engine.rpc import engine_pb2 as pb
from quire_router import metric_catalogue as catalogue
from quire_router.metric_catalogue import Declared
from quire_router.policy import Candidate
from quire_router.pool import Pool
from quire_router.prefix_index import IndexMode
from quire_router.replica import Replica, ReplicaState

PREFIX = f"{catalogue.PREFIX}replica_"

READ: dict[str, Callable[[Replica], float]] = {
    "up": lambda r: r.state is ReplicaState.READY,
    "running": lambda r: _load(r).num_running,
    "waiting": lambda r: _load(r).num_waiting,
    "in_flight": lambda r: r.load.num_own,
    "queued_tokens": lambda r: r.load.queued_tokens,
    "kv_usage_ratio": lambda r: _load(r).num_used_blocks / (_load(r).num_total_blocks or 1),
    "prefill_tokens_per_second": lambda r: _load(r).prefill_tokens_per_s,
    "decode_step_seconds": lambda r: _load(r).decode_step_s,
    "load_age_seconds": lambda r: r.silence_s,
    "prefix_index_blocks": lambda r: r.index.num_known,
    "prefix_index_age_seconds": lambda r: _age_s(r.index.updated_at),
    "breaker_open": lambda r: r.breaker.is_open,
    "requests": lambda r: r.counts.num_dispatched,
    "prompt_tokens": lambda r: r.counts.num_prompt_tokens,
    "expected_cached_tokens": lambda r: r.counts.num_expected_cached_tokens,
    "cached_tokens": lambda r: r.counts.num_cached_tokens,
    "completion_tokens": lambda r: r.counts.num_completion_tokens,
    "cancelled": lambda r: r.counts.num_cancelled,
    "connections": lambda r: r.counts.num_connections,
    "kv_subscriptions": lambda r: r.counts.num_kv_subscriptions,
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

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        replicas = self._pool.replicas
        for declared in (*catalogue.REPLICA_NUMBERS, *catalogue.REPLICA_TOTALS):
            yield _numbers(declared, replicas)
        yield _first_tokens(replicas)
        yield _failures(replicas)
        yield _states(replicas)
        yield _modes(replicas)


def _load(replica: Replica) -> pb.Load:
    return replica.load.report


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


def _numbers(declared: Declared, replicas: Iterable[Replica]) -> Metric:
    family = _family(declared)
    read = READ[declared.family.removeprefix(PREFIX)]
    for replica in replicas:
        family.add_metric([replica.address], float(read(replica)))
    return family


def _first_tokens(replicas: Iterable[Replica]) -> Metric:
    declared = catalogue.REPLICA_FIRST_TOKEN
    family = SummaryMetricFamily(declared.name, declared.help, labels=declared.labels)
    for replica in replicas:
        counts = replica.counts
        family.add_metric([replica.address], counts.num_first_tokens, counts.first_token_s)
    return family


def _failures(replicas: Iterable[Replica]) -> Metric:
    family = _family(catalogue.REPLICA_FAILURES)
    for replica in replicas:
        for verdict, num in replica.counts.num_failures.items():
            family.add_metric([replica.address, verdict.value], num)
    return family


def _states(replicas: Iterable[Replica]) -> Metric:
    family = _family(catalogue.REPLICA_STATE)
    for replica in replicas:
        for state in ReplicaState:
            family.add_metric([replica.address, state.value], replica.state is state)
    return family


def _modes(replicas: Iterable[Replica]) -> Metric:
    family = _family(catalogue.REPLICA_INDEX_MODE)
    for replica in replicas:
        for mode in IndexMode:
            family.add_metric([replica.address, mode.value], replica.index.mode is mode)
    return family
