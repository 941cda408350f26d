"""Metrics of the sources that replicas are found in: whether they are still heard, and what of."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_router.discovery_status import DiscoveryStatus

PREFIX = "quire_router_discovery_"


class DiscoveryCollector(Collector):
    """Series per source, read when Prometheus asks; a source that cannot go stale has none."""

    def __init__(self, statuses: Iterable[DiscoveryStatus]) -> None:
        self._statuses: Sequence[DiscoveryStatus] = [
            status for status in statuses if status.can_go_stale
        ]

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield self._gauge(
            "age_seconds",
            "Time since the source of replicas was last heard; old: new replicas go unnoticed",
            lambda status: status.age_s,
        )
        yield self._gauge(
            "synced",
            "1 once the source has told which replicas there are",
            lambda status: status.heard_at is not None,
        )
        lists = CounterMetricFamily(
            PREFIX + "lists", "Complete sets of replicas that were asked for", labels=["source"]
        )
        failures = CounterMetricFamily(
            PREFIX + "failures",
            "Attempts to ask that failed, by reason",
            labels=["source", "reason"],
        )
        endpoints = GaugeMetricFamily(
            PREFIX + "endpoints", "Endpoints of the source, by state", labels=["source", "state"]
        )
        pods = GaugeMetricFamily(
            "quire_router_replica_info",
            "1 for the pod and the node that a replica's address belongs to",
            labels=["replica", "pod", "node"],
        )
        for status in self._statuses:
            lists.add_metric([status.source], status.num_lists)
            for reason, num in status.failures.items():
                failures.add_metric([status.source, reason], num)
            for state, num in status.num_endpoints.items():
                endpoints.add_metric([status.source, state], num)
            for target, endpoint in status.endpoints.items():
                pods.add_metric([target, endpoint.pod, endpoint.node], 1)
        yield from (lists, failures, endpoints, pods)

    def _gauge(self, name: str, help_: str, value: Callable[[DiscoveryStatus], float]) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, help_, labels=["source"])
        for status in self._statuses:
            family.add_metric([status.source], float(value(status)))
        return family
