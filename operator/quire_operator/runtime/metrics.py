"""Every metric of the operator, declared once.

Names and labels of the first two groups are those of controller-runtime and client-go, so that
dashboards and alerts written for any operator read this one; `quire_*` is what only Quire knows.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from quire_operator.plan import Manifest
from quire_operator.runtime.schedule import Schedule

CONTROLLER = "llmdeployment"
_DURATIONS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STATUSES = ("True", "False", "Unknown")

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
        registry, label = self.registry, ("controller",)
        self.reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles per controller, by result: success, requeue, requeue_after, error.",
            ("controller", "result"),
            registry=registry,
        )
        for result in ("success", "requeue", "requeue_after", "error"):
            self.reconciles.labels(CONTROLLER, result)
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors",
            "Reconciles that failed and will be tried again.",
            label,
            registry=registry,
        ).labels(CONTROLLER)
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors",
            "Reconciles that failed in a way that only a change of the object can help.",
            label,
            registry=registry,
        ).labels(CONTROLLER)
        self.panics = Counter(
            "controller_runtime_reconcile_panics",
            "Reconciles that ended in an exception that nobody expected.",
            label,
            registry=registry,
        ).labels(CONTROLLER)
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of time per reconcile.",
            label,
            buckets=_DURATIONS_S,
            registry=registry,
        ).labels(CONTROLLER)
        self.max_workers = Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Most reconciles at a time.",
            label,
            registry=registry,
        ).labels(CONTROLLER)
        self.active_workers = Gauge(
            "controller_runtime_active_workers",
            "Reconciles that are running.",
            label,
            registry=registry,
        ).labels(CONTROLLER)

    def _declare_queue(self) -> None:
        registry, names = self.registry, ("name", "controller")
        self.queue_duration = Histogram(
            "workqueue_queue_duration_seconds",
            "How long a key was ready before a worker took it.",
            names,
            buckets=_DURATIONS_S,
            registry=registry,
        ).labels(CONTROLLER, CONTROLLER)
        self.work_duration = Histogram(
            "workqueue_work_duration_seconds",
            "How long a worker had a key.",
            names,
            buckets=_DURATIONS_S,
            registry=registry,
        ).labels(CONTROLLER, CONTROLLER)
        self.requests = Counter(
            "rest_client_requests",
            "Requests to the API server, by status code and method.",
            ("code", "method"),
            registry=registry,
        )
        self.leader = Gauge(
            "leader_election_master_status",
            "1 while this replica is the one that writes.",
            ("name",),
            registry=registry,
        )

    def _declare_quire(self) -> None:
        registry = self.registry
        self.is_leader = Gauge(
            "quire_operator_leader", "1 while this replica is the one that writes.",
            registry=registry,
        )  # fmt: skip
        self.writes = Counter(
            "quire_operator_writes",
            "Writes to the API server, by verb and kind.",
            ("verb", "kind"),
            registry=registry,
        )
        self.relists = Counter(
            "quire_operator_relists",
            "Times that a watch began again with a list, by kind and why.",
            ("kind", "reason"),
            registry=registry,
        )
        self.watch_events = Counter(
            "quire_operator_watch_events",
            "Events from watches, by kind.",
            ("kind",),
            registry=registry,
        )
        self.watch_silence = Gauge(
            "quire_operator_watch_silence_seconds",
            "How long ago a watch last heard anything, bookmarks included.",
            ("kind",),
            registry=registry,
        )
        self.objects = Gauge(
            "quire_operator_objects",
            "Objects in the operator's memory, by kind.",
            ("kind",),
            registry=registry,
        )
        self.front_restarts = Counter(
            "quire_operator_kopf_restarts",
            "Times that kopf ended with an error and was started again.",
            registry=registry,
        )


class _QueueCollector(Collector):
    def __init__(self, schedule: Schedule[DeploymentKey], clock: Callable[[], float]) -> None:
        self._schedule = schedule
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        schedule, now = self._schedule, self._clock()
        values = (
            ("workqueue_depth", "Keys that are ready.", schedule.depth),
            ("workqueue_adds_total", "Times that a key became ready.", schedule.num_adds),
            ("workqueue_retries_total", "Times that a key failed.", schedule.num_retries),
            (
                "workqueue_unfinished_work_seconds",
                "Time that keys which are worked on have taken so far, together.",
                schedule.unfinished_s(now=now),
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "Time that the slowest worker has had its key.",
                schedule.longest_active_s(now=now),
            ),
        )
        for name, help_, value in values:
            family = GaugeMetricFamily(name, help_, labels=("name", "controller"))
            family.add_metric((CONTROLLER, CONTROLLER), value)
            yield family


class _DeploymentCollector(Collector):
    def __init__(self, deployments: Callable[[], Mapping[DeploymentKey, Manifest]]) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[GaugeMetricFamily]:
        statuses = [
            (namespace, name, manifest.get("status") or {})
            for (namespace, name), manifest in list(self._deployments().items())
        ]
        yield _conditions(statuses)
        yield _reasons(statuses)
        yield _replicas(statuses)


def _conditions(statuses: Iterable[tuple[str, str, Manifest]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "quire_llmdeployment_condition",
        "1 for the status that a condition of an LLMDeployment has, 0 for the others.",
        labels=("namespace", "name", "type", "status"),
    )
    for namespace, name, status in statuses:
        for condition in status.get("conditions") or ():
            for value in _STATUSES:
                held = 1.0 if condition.get("status") == value else 0.0
                family.add_metric((namespace, name, condition["type"], value), held)
    return family


def _reasons(statuses: Iterable[tuple[str, str, Manifest]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "quire_llmdeployment_condition_reason",
        "1 for the reason that a condition of an LLMDeployment has.",
        labels=("namespace", "name", "type", "reason"),
    )
    for namespace, name, status in statuses:
        for condition in status.get("conditions") or ():
            reason = condition.get("reason", "")
            family.add_metric((namespace, name, condition["type"], reason), 1)
    return family


def _replicas(statuses: Iterable[tuple[str, str, Manifest]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "quire_llmdeployment_replicas",
        "Engine replicas of an LLMDeployment, by state.",
        labels=("namespace", "name", "state"),
    )
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
