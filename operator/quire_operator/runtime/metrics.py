"""The metrics of `metric_catalogue` in one operator process."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from quire_operator.plan import Manifest
from quire_operator.runtime import metric_catalogue as catalogue
from quire_operator.runtime.metric_catalogue import Declared
from quire_operator.runtime.schedule import Schedule

CONTROLLER = "llmdeployment"

Family = CounterMetricFamily | GaugeMetricFamily
DeploymentKey = tuple[str, str]
"""(namespace, name)."""


class OperatorMetrics:
    """The metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._declare_reconciling()
        self._declare_queue()
        self._declare_quire()

    def render(self) -> bytes:
        """Write everything in the text format of Prometheus."""
        with self._lock:
            return generate_latest(self.registry)

    def watch_queue(self, schedule: Schedule[DeploymentKey], clock: Callable[[], float]) -> None:
        """Report a queue's state at every scrape."""
        self.registry.register(_QueueCollector(schedule, clock))

    def watch_deployments(
        self, deployments: Callable[[], Mapping[DeploymentKey, Manifest]]
    ) -> None:
        """Report the conditions and replicas of these deployments at every scrape."""
        self.registry.register(_DeploymentCollector(deployments))

    def _declare_reconciling(self) -> None:
        registry = self.registry
        self.reconciles = catalogue.RECONCILES.counter(registry)
        for result in catalogue.RESULTS:
            self.reconciles.labels(CONTROLLER, result)
        errors = catalogue.RECONCILE_ERRORS.counter(registry)
        self.reconcile_errors = errors.labels(CONTROLLER)
        self.terminal_errors = catalogue.TERMINAL_ERRORS.counter(registry).labels(CONTROLLER)
        self.panics = catalogue.PANICS.counter(registry).labels(CONTROLLER)
        self.reconcile_time = catalogue.RECONCILE_TIME.histogram(registry).labels(CONTROLLER)
        self.max_workers = catalogue.MAX_WORKERS.gauge(registry).labels(CONTROLLER)
        self.active_workers = catalogue.ACTIVE_WORKERS.gauge(registry).labels(CONTROLLER)

    def _declare_queue(self) -> None:
        registry = self.registry
        waits = catalogue.QUEUE_DURATION.histogram(registry)
        self.queue_duration = waits.labels(CONTROLLER, CONTROLLER)
        work = catalogue.WORK_DURATION.histogram(registry)
        self.work_duration = work.labels(CONTROLLER, CONTROLLER)
        self.requests = catalogue.API_REQUESTS.counter(registry)
        self.leader = catalogue.LEADER_STATUS.gauge(registry)

    def _declare_quire(self) -> None:
        registry = self.registry
        self.is_leader = catalogue.LEADER.gauge(registry)
        self.writes = catalogue.WRITES.counter(registry)
        self.relists = catalogue.RELISTS.counter(registry)
        self.watch_events = catalogue.WATCH_EVENTS.counter(registry)
        self.watch_silence = catalogue.WATCH_SILENCE.gauge(registry)
        self.objects = catalogue.OBJECTS.gauge(registry)
        self.front_restarts = catalogue.KOPF_RESTARTS.counter(registry)


class _QueueCollector(Collector):
    def __init__(self, schedule: Schedule[DeploymentKey], clock: Callable[[], float]) -> None:
        self._schedule = schedule
        self._clock = clock

    def collect(self) -> Iterator[Family]:
        schedule, now = self._schedule, self._clock()
        values = {
            catalogue.DEPTH: schedule.depth,
            catalogue.ADDS: schedule.num_adds,
            catalogue.QUEUE_RETRIES: schedule.num_retries,
            catalogue.UNFINISHED: schedule.unfinished_s(now=now),
            catalogue.LONGEST: schedule.longest_active_s(now=now),
        }
        for declared, value in values.items():
            family = _family(declared)
            family.add_metric((CONTROLLER, CONTROLLER), value)
            yield family


class _DeploymentCollector(Collector):
    def __init__(self, deployments: Callable[[], Mapping[DeploymentKey, Manifest]]) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[Family]:
        statuses = [
            (namespace, name, manifest.get("status") or {})
            for (namespace, name), manifest in list(self._deployments().items())
        ]
        yield _conditions(statuses)
        yield _reasons(statuses)
        yield _replicas(statuses)


def _family(declared: Declared) -> Family:
    type_ = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    return type_(declared.family, declared.help, labels=declared.labels)


def _conditions(statuses: Iterable[tuple[str, str, Manifest]]) -> Family:
    family = _family(catalogue.CONDITION)
    for namespace, name, status in statuses:
        for condition in status.get("conditions") or ():
            for value in catalogue.STATUSES:
                held = 1.0 if condition.get("status") == value else 0.0
                family.add_metric((namespace, name, condition["type"], value), held)
    return family


def _reasons(statuses: Iterable[tuple[str, str, Manifest]]) -> Family:
    family = _family(catalogue.CONDITION_REASON)
    for namespace, name, status in statuses:
        for condition in status.get("conditions") or ():
            reason = condition.get("reason", "")
            family.add_metric((namespace, name, condition["type"], reason), 1)
    return family


def _replicas(statuses: Iterable[tuple[str, str, Manifest]]) -> Family:
    family = _family(catalogue.REPLICAS)
    fields = {
        "current": "replicas",
        "ready": "readyReplicas",
        "updated": "updatedReplicas",
        "available": "availableReplicas",
    }
    for namespace, name, status in statuses:
        for state, field in fields.items():
            if field in status:
                family.add_metric((namespace, name, state), status[field])
    return family
