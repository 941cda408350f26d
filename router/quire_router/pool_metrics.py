"""Metrics of the replicas and of the decisions about them.

What is known of a replica is read when Prometheus asks: it costs nothing in between, and the series
of a replica that is gone are gone with it.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_engine.rpc import engine_pb2 as pb
from quire_router.pool import Pool
from quire_router.prefix_index import IndexMode
from quire_router.replica import Replica, ReplicaState

DECISION_BUCKETS_S = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
PREFIX = "quire_router_replica_"

Value = Callable[[Replica], float]

GAUGES: tuple[tuple[str, str, Value], ...] = (
    ("up", "1 when the replica can be sent requests", lambda r: r.state is ReplicaState.READY),
    ("running", "Requests running on the replica, of all routers", lambda r: _load(r).num_running),
    ("waiting", "Requests waiting on the replica, of all routers", lambda r: _load(r).num_waiting),
    ("in_flight", "Requests of this router on the replica", lambda r: r.load.num_own),
    (
        "queued_tokens",
        "Prompt tokens that the replica has yet to compute, as decisions see it",
        lambda r: r.load.queued_tokens,
    ),
    (
        "kv_usage_ratio",
        "Share of the replica's KV blocks that live requests use",
        lambda r: _load(r).num_used_blocks / (_load(r).num_total_blocks or 1),
    ),
    (
        "prefill_tokens_per_second",
        "Prompt tokens per second that the replica has measured",
        lambda r: _load(r).prefill_tokens_per_s,
    ),
    (
        "prefix_index_blocks",
        "Blocks that this router believes cached there",
        lambda r: r.index.num_known,
    ),
    (
        "prefix_index_age_seconds",
        "Time since the last event of the replica's prefix cache",
        lambda r: time.monotonic() - r.index.updated_at if r.index.updated_at else 0.0,
    ),
    (
        "breaker_open",
        "1 while the circuit breaker keeps requests away",
        lambda r: r.breaker.is_open,
    ),
)

COUNTERS: tuple[tuple[str, str, Value], ...] = (
    (
        "requests",
        "Requests sent to the replica, retries included",
        lambda r: r.counts.num_dispatched,
    ),
    ("prompt_tokens", "Prompt tokens sent to the replica", lambda r: r.counts.num_prompt_tokens),
    (
        "expected_cached_tokens",
        "Prompt tokens that decisions expected to be cached there",
        lambda r: r.counts.num_expected_cached_tokens,
    ),
    (
        "cached_tokens",
        "Prompt tokens that the replica found cached",
        lambda r: r.counts.num_cached_tokens,
    ),
    ("connections", "Times that the session was opened", lambda r: r.counts.num_connections),
    (
        "kv_subscriptions",
        "Times that cache events were subscribed to",
        lambda r: r.counts.num_kv_subscriptions,
    ),
)


class DispatchMetrics:
    """What happens between a request and a replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decision_s = Histogram(
            "quire_router_decision_seconds",
            "Time to choose a replica, hashing the prompt apart",
            buckets=DECISION_BUCKETS_S,
            registry=registry,
        )
        self.retries = Counter(
            "quire_router_retries",
            "Requests sent to another replica after one failed them, by reason",
            ["reason"],
            registry=registry,
        )
        self.parked = Gauge(
            "quire_router_parked_requests",
            "Requests that wait for a replica to become ready",
            registry=registry,
        )


class ReplicaCollector(Collector):
    """Per-replica series, from what the replicas are at the moment of the scrape."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        replicas = self._pool.replicas
        for name, help_, value in GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, help_, labels=["replica"])
            for replica in replicas:
                gauge.add_metric([replica.address], float(value(replica)))
            yield gauge
        for name, help_, value in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, help_, labels=["replica"])
            for replica in replicas:
                counter.add_metric([replica.address], float(value(replica)))
            yield counter
        yield _failures(replicas)
        yield _states(replicas)
        yield _modes(replicas)


def _load(replica: Replica) -> pb.Load:
    return replica.load.report


def _failures(replicas: Iterable[Replica]) -> Metric:
    family = CounterMetricFamily(
        PREFIX + "failures",
        "Requests that the replica did not serve, by reason",
        labels=["replica", "reason"],
    )
    for replica in replicas:
        for verdict, num in replica.counts.num_failures.items():
            family.add_metric([replica.address, verdict.value], num)
    return family


def _states(replicas: Iterable[Replica]) -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "state", "1 for the state that the replica is in", labels=["replica", "state"]
    )
    for replica in replicas:
        for state in ReplicaState:
            family.add_metric([replica.address, state.value], replica.state is state)
    return family


def _modes(replicas: Iterable[Replica]) -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "prefix_index_mode",
        "1 for where knowledge of the replica's cache comes from: exact events, history (degraded)",
        labels=["replica", "mode"],
    )
    for replica in replicas:
        for mode in IndexMode:
            family.add_metric([replica.address, mode.value], replica.index.mode is mode)
    return family
