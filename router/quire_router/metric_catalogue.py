"""Every metric of the router, declared once: the README's table is made from this.

Names never change: dashboards, alerts and autoscalers are built on them. No label holds what a
client wrote; series that name a replica go when it goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "quire_router_"
DURATION_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 60.0),
)
INTER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5),
)
DECISION_S = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)

STATES = ("connecting", "ready", "draining", "unhealthy", "unresponsive")
FAILURES = ("fault", "lost", "full", "draining", "refused")
INDEX_MODES = ("exact", "degraded", "off")
DECISION_MODES = (*INDEX_MODES, "least-requests")
PREFIX_MATCHES = ("best", "passed_over", "none")
SLO_RESULTS = ("met", "slow_first_token", "slow_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One metric as Prometheus shows it."""

    name: str
    """With its prefix and, for counters, `_total`."""
    kind: Literal["gauge", "counter", "histogram", "summary"]
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """All values of the last label, where they are known beforehand."""
    buckets: tuple[float, ...] = ()
    of_workers: Literal["livesum", "max"] = "max"
    """What a gauge of several processes shows."""

    @property
    def family(self) -> str:
        """The name without `_total`, as client libraries want it."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def counter(self, registry: CollectorRegistry) -> Counter:
        return Counter(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        return Gauge(
            self.name,
            self.help,
            self.labels,
            registry=registry,
            multiprocess_mode=self.of_workers,
        )

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        return Histogram(self.name, self.help, self.labels, buckets=self.buckets, registry=registry)


def _gauge(name: str, help_: str, *labels: str, values: tuple[str, ...] = ()) -> Declared:
    return Declared(name=PREFIX + name, kind="gauge", help=help_, labels=labels, values=values)


def _counter(name: str, help_: str, *labels: str, values: tuple[str, ...] = ()) -> Declared:
    name = f"{PREFIX}{name}_total"
    return Declared(name=name, kind="counter", help=help_, labels=labels, values=values)


def _histogram(
    name: str,
    help_: str,
    buckets: Iterable[float],
    *labels: str,
    values: tuple[str, ...] = (),
) -> Declared:
    return Declared(
        name=PREFIX + name,
        kind="histogram",
        help=help_,
        labels=labels,
        values=values,
        buckets=tuple(buckets),
    )


REQUESTS = _counter("requests", "Requests answered.", "route", "status")
IN_FLIGHT = replace(
    _gauge("requests_in_flight", "Requests to generate that are being answered."),
    of_workers="livesum",
)
DISCONNECTS = _counter(
    "client_disconnects", "Requests whose client went away before the end.", "route"
)
REQUEST_S = _histogram(
    "request_duration_seconds", "From the request to its last byte.", DURATION_S, "route"
)
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds",
    "From a request to its first generated token, as the router sees it; streams only.",
    FIRST_TOKEN_S,
)
INTER_TOKEN = _histogram(
    "inter_token_latency_seconds", "Between two pieces of one stream's generation.", INTER_TOKEN_S
)
PROMPT_TOKENS = _counter("prompt_tokens", "Tokens of prompts.")
CACHED_PROMPT_TOKENS = _counter("cached_prompt_tokens", "Tokens of prompts found in a cache.")
COMPLETION_TOKENS = _counter("completion_tokens", "Tokens generated.")
TOKENIZE = _histogram(
    "tokenize_seconds", "Tokenizing a text that was not in the cache.", DURATION_S
)
TOKENIZER_CACHE = _counter("tokenizer_cache", "Texts looked up.", "result", values=("hit", "miss"))
LOOP_LAG = _histogram(
    "event_loop_lag_seconds", "How late the event loop runs what is due.", DURATION_S
)
SLO_REQUESTS = _counter(
    "slo_requests",
    "Requests that ended well, judged by --slo-ttft-ms and --slo-itl-ms: `met`, "
    "`slow_first_token`, `slow_tokens` (mean time per token). No series without targets.",
    "result",
    values=SLO_RESULTS,
)
SLO_TARGET = _gauge("slo_target_seconds", "The targets given, by what they bound.", "target")
INFO = _gauge("info", "1, with the version in a label.", "version")
HTTP = (
    *(REQUESTS, IN_FLIGHT, DISCONNECTS, REQUEST_S, TIME_TO_FIRST_TOKEN, INTER_TOKEN),
    *(PROMPT_TOKENS, CACHED_PROMPT_TOKENS, COMPLETION_TOKENS, SLO_REQUESTS, SLO_TARGET),
    *(TOKENIZE, TOKENIZER_CACHE, LOOP_LAG, INFO),
)

DECISION = _histogram(
    "decision_seconds",
    "Time to choose a replica, hashing the prompt apart, by what was known of their caches: all "
    "`exact`, some `degraded` (history), all `off`; or `least-requests`, which does not ask.",
    DECISION_S,
    "mode",
    values=DECISION_MODES,
)
_MATCH = (
    "by whether the chosen replica has the most of the prompt cached (`best`), another had more "
    "but costs more (`passed_over`), or no replica had any (`none`)"
)
DECISIONS = _counter(
    "decisions", f"Choices of a replica, {_MATCH}.", "prefix", values=PREFIX_MATCHES
)
DECIDED_PROMPT_TOKENS = _counter(
    "decision_prompt_tokens",
    "Tokens of the prompts decided on, as in decisions.",
    "prefix",
    values=PREFIX_MATCHES,
)
DECIDED_EXPECTED_TOKENS = _counter(
    "decision_expected_cached_tokens",
    "Of those, expected in the cache of the chosen replica.",
    "prefix",
    values=PREFIX_MATCHES,
)
RETRIES = _counter(
    "retries", "Requests sent to another replica after one failed them, by reason.", "reason"
)
PARKED = replace(
    _gauge("parked_requests", "Requests that wait for a replica to become ready."),
    of_workers="livesum",
)
DISPATCH = (
    *(DECISION, DECISIONS, DECIDED_PROMPT_TOKENS, DECIDED_EXPECTED_TOKENS, RETRIES, PARKED),
)


def _of_replica(name: str, help_: str, *labels: str, values: tuple[str, ...] = ()) -> Declared:
    return _gauge(f"replica_{name}", help_, "replica", *labels, values=values)


def _total_of_replica(
    name: str, help_: str, *labels: str, values: tuple[str, ...] = ()
) -> Declared:
    return _counter(f"replica_{name}", help_, "replica", *labels, values=values)


REPLICA_NUMBERS = (
    _of_replica("up", "1 when the replica can be sent requests."),
    _of_replica("running", "Requests running on the replica, of all routers."),
    _of_replica("waiting", "Requests waiting on the replica, of all routers."),
    _of_replica("in_flight", "Requests of this router on the replica."),
    _of_replica(
        "queued_tokens", "Prompt tokens that the replica has yet to compute, as decisions see it."
    ),
    _of_replica("kv_usage_ratio", "Share of the replica's KV blocks that live requests use."),
    _of_replica(
        "prefill_tokens_per_second", "Prompt tokens per second that the replica has measured."
    ),
    _of_replica("decode_step_seconds", "Duration of its decode steps, as it has measured."),
    _of_replica("load_age_seconds", "Time since its last load report; one is due every 50 ms."),
    _of_replica("prefix_index_blocks", "Blocks that this router believes cached there."),
    _of_replica(
        "prefix_index_age_seconds", "Time since the last event of the replica's prefix cache."
    ),
    _of_replica("breaker_open", "1 while the circuit breaker keeps requests away."),
)
REPLICA_TOTALS = (
    _total_of_replica("requests", "Requests sent to the replica, retries included."),
    _total_of_replica("prompt_tokens", "Prompt tokens sent to the replica."),
    _total_of_replica(
        "expected_cached_tokens", "Prompt tokens that decisions expected to be cached there."
    ),
    _total_of_replica("cached_tokens", "Prompt tokens that the replica found cached."),
    _total_of_replica("completion_tokens", "Tokens generated, of requests that ended well."),
    _total_of_replica("cancelled", "Requests taken back: their client went away."),
    _total_of_replica("connections", "Times that the session was opened."),
    _total_of_replica("kv_subscriptions", "Times that cache events were subscribed to."),
)
REPLICA_FIRST_TOKEN = Declared(
    name=f"{PREFIX}replica_time_to_first_token_seconds",
    kind="summary",
    help="From sending a request to the replica to its first token; no quantiles.",
    labels=("replica",),
)
REPLICA_FAILURES = _total_of_replica(
    "failures", "Requests that the replica did not serve, by reason.", "reason", values=FAILURES
)
REPLICA_STATE = _of_replica(
    "state", "1 for the state that the replica is in.", "state", values=STATES
)
REPLICA_INDEX_MODE = _of_replica(
    "prefix_index_mode",
    "1 for where knowledge of the replica's cache comes from: `exact` events, history "
    "(`degraded`), or `off`.",
    "mode",
    values=INDEX_MODES,
)
REPLICA_INFO = _of_replica(
    "info", "1 for the pod and the node that a replica's address belongs to.", "pod", "node"
)
REPLICAS = (
    *(*REPLICA_NUMBERS, *REPLICA_TOTALS, REPLICA_FIRST_TOKEN),
    *(REPLICA_FAILURES, REPLICA_STATE, REPLICA_INDEX_MODE, REPLICA_INFO),
)

DISCOVERY_AGE = _gauge(
    "discovery_age_seconds",
    "Time since the source of replicas was last heard; old: new replicas go unnoticed.",
    "source",
)
DISCOVERY_SYNCED = _gauge(
    "discovery_synced", "1 once the source has told which replicas there are.", "source"
)
DISCOVERY_LISTS = _counter(
    "discovery_lists", "Complete sets of replicas that were asked for.", "source"
)
DISCOVERY_FAILURES = _counter(
    "discovery_failures", "Attempts to ask that failed, by reason.", "source", "reason"
)
DISCOVERY_ENDPOINTS = _gauge(
    "discovery_endpoints", "Endpoints of the source, by state.", "source", "state"
)
DISCOVERY = (
    *(DISCOVERY_AGE, DISCOVERY_SYNCED, DISCOVERY_LISTS, DISCOVERY_FAILURES, DISCOVERY_ENDPOINTS),
)
WORKERS = _gauge("workers", "Processes of this router that accept requests.")
WORKER_RESTARTS = _counter("worker_restarts", "Workers started again after one had ended.")
PROCESSES = (WORKERS, WORKER_RESTARTS)
CATALOGUE = (*HTTP, *DISPATCH, *REPLICAS, *DISCOVERY, *PROCESSES)
