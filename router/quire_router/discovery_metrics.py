"""Metrics of the sources that replicas are found in: whether they are still heard, and what of."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_router import metric_catalogue as catalogue
from quire_router.discovery_status import DiscoveryStatus
from quire_router.metric_catalogue import Declared


class DiscoveryCollector(Collector):
    """Series per source, read when Prometheus asks; a source that cannot go stale has none."""

    def __init__(self, statuses: Callable[[], Iterable[DiscoveryStatus]]) -> None:
        self._read = statuses

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        statuses = [status for status in self._read() if status.can_go_stale]
        yield _of_each(statuses, catalogue.DISCOVERY_AGE, lambda status: status.age_s)
        yield _of_each(
            statuses, catalogue.DISCOVERY_SYNCED, lambda status: status.heard_at is not None
        )
        lists = _counter(catalogue.DISCOVERY_LISTS)
        failures = _counter(catalogue.DISCOVERY_FAILURES)
        endpoints = _gauge(catalogue.DISCOVERY_ENDPOINTS)
        pods = _gauge(catalogue.REPLICA_INFO)
        for status in statuses:
            lists.add_metric([status.source], status.num_lists)
            for reason, num in status.failures.items():
                failures.add_metric([status.source, reason], num)
            for state, num in status.num_endpoints.items():
                endpoints.add_metric([status.source, state], num)
            for target, endpoint in status.endpoints.items():
                pods.add_metric([target, endpoint.pod, endpoint.node], 1)
        yield from (lists, failures, endpoints, pods)


def _of_each(
    statuses: Iterable[DiscoveryStatus],
    declared: Declared,
    value: Callable[[DiscoveryStatus], float],
) -> Metric:
    family = _gauge(declared)
    for status in statuses:
        family.add_metric([status.source], float(value(status)))
    return family


def _gauge(declared: Declared) -> GaugeMetricFamily:
    return GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)


def _counter(declared: Declared) -> CounterMetricFamily:
    return CounterMetricFamily(declared.family, declared.help, labels=declared.labels)
