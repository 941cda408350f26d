"""Every metric of the operator, declared once: the README's table is made from this.

Names and labels of the first groups are those of controller-runtime and client-go, so that
dashboards and alerts written for any operator read this one; `quire_*` is what only Quire knows.
Names never change.
"""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

DURATION_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RESULTS = ("success", "requeue", "requeue_after", "error")
STATUSES = ("True", "False", "Unknown")
REPLICA_STATES = ("current", "ready", "updated", "available")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One metric as Prometheus shows it."""

    name: str
    """With `_total` for counters."""
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """All values of the last label, where they are known beforehand."""
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name without `_total`, as client libraries want it."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def counter(self, registry: CollectorRegistry) -> Counter:
        return Counter(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        return Histogram(self.name, self.help, self.labels, buckets=self.buckets, registry=registry)


def _gauge(name: str, help_: str, *labels: str, values: tuple[str, ...] = ()) -> Declared:
    return Declared(name=name, kind="gauge", help=help_, labels=labels, values=values)


def _counter(name: str, help_: str, *labels: str, values: tuple[str, ...] = ()) -> Declared:
    return Declared(name=f"{name}_total", kind="counter", help=help_, labels=labels, values=values)


def _histogram(name: str, help_: str, *labels: str) -> Declared:
    return Declared(name=name, kind="histogram", help=help_, labels=labels, buckets=DURATION_S)


RECONCILES = _counter(
    "controller_runtime_reconcile",
    "Reconciles per controller, by result.",
    "controller",
    "result",
    values=RESULTS,
)
RECONCILE_ERRORS = _counter(
    "controller_runtime_reconcile_errors",
    "Reconciles that failed and will be tried again.",
    "controller",
)
TERMINAL_ERRORS = _counter(
    "controller_runtime_terminal_reconcile_errors",
    "Reconciles that failed in a way that only a change of the object can help.",
    "controller",
)
PANICS = _counter(
    "controller_runtime_reconcile_panics",
    "Reconciles that ended in an exception that nobody expected.",
    "controller",
)
RECONCILE_TIME = _histogram(
    "controller_runtime_reconcile_time_seconds", "Length of time per reconcile.", "controller"
)
MAX_WORKERS = _gauge(
    "controller_runtime_max_concurrent_reconciles", "Most reconciles at a time.", "controller"
)
ACTIVE_WORKERS = _gauge(
    "controller_runtime_active_workers", "Reconciles that are running.", "controller"
)
RECONCILING = (
    *(RECONCILES, RECONCILE_ERRORS, TERMINAL_ERRORS, PANICS),
    *(RECONCILE_TIME, MAX_WORKERS, ACTIVE_WORKERS),
)

_QUEUE = ("name", "controller")
QUEUE_DURATION = _histogram(
    "workqueue_queue_duration_seconds", "How long a key was ready before a worker took it.", *_QUEUE
)
WORK_DURATION = _histogram(
    "workqueue_work_duration_seconds", "How long a worker had a key.", *_QUEUE
)
DEPTH = _gauge("workqueue_depth", "Keys that are ready.", *_QUEUE)
ADDS = _counter("workqueue_adds", "Times that a key became ready.", *_QUEUE)
QUEUE_RETRIES = _counter("workqueue_retries", "Times that a key failed.", *_QUEUE)
UNFINISHED = _gauge(
    "workqueue_unfinished_work_seconds",
    "Time that keys which are worked on have taken so far, together.",
    *_QUEUE,
)
LONGEST = _gauge(
    "workqueue_longest_running_processor_seconds",
    "Time that the slowest worker has had its key.",
    *_QUEUE,
)
QUEUE_STATE = (DEPTH, ADDS, QUEUE_RETRIES, UNFINISHED, LONGEST)
QUEUE = (QUEUE_DURATION, WORK_DURATION, *QUEUE_STATE)

API_REQUESTS = _counter(
    "rest_client_requests", "Requests to the API server, by status code and method.",
    "code", "method",
)  # fmt: skip
LEADER_STATUS = _gauge(
    "leader_election_master_status", "1 while this replica is the one that writes.", "name"
)
CLIENT = (API_REQUESTS, LEADER_STATUS)

LEADER = _gauge("quire_operator_leader", "1 while this replica is the one that writes.")
WRITES = _counter(
    "quire_operator_writes", "Writes to the API server, by verb and kind.", "verb", "kind"
)
RELISTS = _counter(
    "quire_operator_relists",
    "Times that a watch began again with a list, by kind and why.",
    "kind",
    "reason",
)
WATCH_EVENTS = _counter("quire_operator_watch_events", "Events from watches, by kind.", "kind")
WATCH_SILENCE = _gauge(
    "quire_operator_watch_silence_seconds",
    "How long ago a watch last heard anything, bookmarks included.",
    "kind",
)
OBJECTS = _gauge("quire_operator_objects", "Objects in the operator's memory, by kind.", "kind")
KOPF_RESTARTS = _counter(
    "quire_operator_kopf_restarts", "Times that kopf ended with an error and was started again."
)
OPERATOR = (LEADER, WRITES, RELISTS, WATCH_EVENTS, WATCH_SILENCE, OBJECTS, KOPF_RESTARTS)

CONDITION = _gauge(
    "quire_llmdeployment_condition",
    "1 for the status that a condition of an LLMDeployment has, 0 for the others.",
    *("namespace", "name", "type", "status"),
    values=STATUSES,
)
CONDITION_REASON = _gauge(
    "quire_llmdeployment_condition_reason",
    "1 for the reason that a condition of an LLMDeployment has.",
    *("namespace", "name", "type", "reason"),
)
REPLICAS = _gauge(
    "quire_llmdeployment_replicas",
    "Engine replicas of an LLMDeployment, by state.",
    *("namespace", "name", "state"),
    values=REPLICA_STATES,
)
DEPLOYMENTS = (CONDITION, CONDITION_REASON, REPLICAS)
CATALOGUE = (*RECONCILING, *QUEUE, *CLIENT, *OPERATOR, *DEPLOYMENTS)
