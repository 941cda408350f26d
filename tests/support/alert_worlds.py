"""Series of a healthy deployment, and what of them is different in each trouble.

Written as promtool's rule tests take them: one sample a minute, `a+bxn` is n steps of b from a.
"""

from collections.abc import Mapping
from dataclasses import dataclass

NUM_MINUTES = 480
PODS = tuple(f"chat-engine-{index}" for index in range(4))
ABOUT = 'namespace="prod",quire_dev_deployment="chat"'
ROUTER = f'{ABOUT},pod="chat-router-a",instance="10.0.0.9:8000"'
OPERATOR = 'namespace="quire-system",pod="quire-operator-a",instance="10.0.0.8:8080"'
DEPLOYMENT = 'namespace="prod",name="chat",pod="quire-operator-a"'
CONTROLLER = f'{OPERATOR},controller="llmdeployment"'

Series = dict[str, str]


def always(value: float) -> str:
    return f"{value}+0x{NUM_MINUTES}"


def growing(per_minute: float) -> str:
    return f"0+{per_minute}x{NUM_MINUTES}"


def engine(pod: str) -> str:
    return f'{ABOUT},pod="{pod}",instance="{pod}:9090"'


def towards(replica: str) -> str:
    return f'{ROUTER},replica="{replica}"'


def histogram(name: str, labels: str, seconds: float) -> Series:
    """All values in the bucket that ends at `seconds`, 60 a minute."""
    bounds = (0.01, 0.1, 0.5, 1, 5, 10, 60)
    counts = {str(bound): growing(60 if bound >= seconds else 0) for bound in bounds}
    buckets = counts | {"+Inf": growing(60)}
    return {f'{name}_bucket{{{labels},le="{le}"}}': value for le, value in buckets.items()}


def reason(type_: str, value: str) -> Series:
    """A condition's reason; the good one of the same type is gone."""
    good = GOOD_REASONS[type_]
    name = "quire_llmdeployment_condition_reason"
    return {
        f'{name}{{{DEPLOYMENT},type="{type_}",reason="{good}"}}': f"_x{NUM_MINUTES}",
        f'{name}{{{DEPLOYMENT},type="{type_}",reason="{value}"}}': always(1),
    }


GOOD_REASONS = {
    "Ready": "Ready",
    "Accepted": "Valid",
    "CapacityAvailable": "Fits",
    "ModelCached": "Cached",
    "WorkloadAvailable": "MinimumReplicasAvailable",
    "Progressing": "RolloutComplete",
    "RouterReady": "Ready",
    "AutoscalerReady": "NotRequired",
    "ReconciliationPaused": "NotPaused",
    "Degraded": "AsExpected",
}


def _engines() -> dict[str, str]:
    series: dict[str, str] = {}
    for pod in PODS:
        labels = engine(pod)
        series |= {
            f"up{{{labels}}}": always(1),
            f"process_start_time_seconds{{{labels}}}": always(1e9),
            f"quire_engine_steps_total{{{labels}}}": growing(3000),
            f"quire_engine_last_step_age_seconds{{{labels}}}": always(0.01),
            f"quire_engine_num_requests_running{{{labels}}}": always(4),
            f"quire_engine_num_requests_waiting{{{labels}}}": always(1),
            f"quire_engine_kv_cache_usage_ratio{{{labels}}}": always(0.5),
            f"quire_engine_num_preemptions_total{{{labels}}}": growing(0),
            f"quire_engine_kernel_compiles_after_ready_total{{{labels}}}": growing(0),
            f"quire_engine_generation_tokens_total{{{labels}}}": growing(6000),
            f"quire_engine_prompt_tokens_total{{{labels}}}": growing(6000),
            f"quire_engine_prefix_cache_queries_total{{{labels}}}": growing(100),
            f"quire_engine_prefix_cache_hits_total{{{labels}}}": growing(80),
            f'quire_engine_request_success_total{{{labels},finished_reason="stop"}}': growing(60),
        }
    return series


def _router() -> dict[str, str]:
    series = {
        f"up{{{ROUTER}}}": always(1),
        f"quire_router_requests_in_flight{{{ROUTER}}}": always(16),
        f"quire_router_parked_requests{{{ROUTER}}}": always(0),
        f"quire_router_worker_restarts_total{{{ROUTER}}}": growing(0),
        f'quire_router_discovery_age_seconds{{{ROUTER},source="chat-engine"}}': always(60),
        requests("200"): growing(240),
    }
    series |= histogram("quire_router_time_to_first_token_seconds", ROUTER, 0.5)
    series |= histogram("quire_router_inter_token_latency_seconds", ROUTER, 0.01)
    series |= histogram("quire_router_request_duration_seconds", ROUTER, 5)
    series |= histogram("quire_router_event_loop_lag_seconds", ROUTER, 0.01)
    for pod in PODS:
        labels = towards(pod)
        series |= {
            f"quire_router_replica_up{{{labels}}}": always(1),
            f"quire_router_replica_breaker_open{{{labels}}}": always(0),
            f'quire_router_replica_prefix_index_mode{{{labels},mode="exact"}}': always(1),
            f'quire_router_replica_prefix_index_mode{{{labels},mode="degraded"}}': always(0),
        }
    return series


def _operator() -> dict[str, str]:
    replicas = "quire_llmdeployment_replicas"
    series = {
        f'{replicas}{{{DEPLOYMENT},state="{state}"}}': always(len(PODS))
        for state in ("current", "ready", "updated", "available")
    }
    series |= {
        f"quire_operator_leader{{{OPERATOR}}}": always(1),
        f'quire_operator_watch_silence_seconds{{{OPERATOR},kind="Pod"}}': always(30),
        f"controller_runtime_reconcile_errors_total{{{CONTROLLER}}}": growing(0),
        f"workqueue_depth{{{CONTROLLER}}}": always(0),
        f"workqueue_longest_running_processor_seconds{{{CONTROLLER}}}": always(0.1),
        degraded("True"): always(0),
    }
    for type_, value in GOOD_REASONS.items():
        name = "quire_llmdeployment_condition_reason"
        series[f'{name}{{{DEPLOYMENT},type="{type_}",reason="{value}"}}'] = always(1)
    return series


def requests(status: str, route: str = "/v1/chat/completions") -> str:
    return f'quire_router_requests_total{{{ROUTER},route="{route}",status="{status}"}}'


def degraded(status: str) -> str:
    return f'quire_llmdeployment_condition{{{DEPLOYMENT},type="Degraded",status="{status}"}}'


HEALTHY: Series = {**_engines(), **_router(), **_operator()}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is different while one alert fires, and when to look."""

    alert: str
    series: Series
    at_minute: int = 60
    also: tuple[str, ...] = ()
    """Alerts that fire with it, being about the same."""


_FIRST = engine(PODS[0])
TROUBLES = (
    Trouble("QuireErrorBudgetBurnFast", {requests("503"): growing(60)}, at_minute=10),
    Trouble("QuireErrorBudgetBurnSlow", {requests("500"): growing(2.2)}),
    Trouble(
        "QuireFirstTokenSlow", histogram("quire_router_time_to_first_token_seconds", ROUTER, 10)
    ),
    Trouble(
        "QuireInterTokenSlow", histogram("quire_router_inter_token_latency_seconds", ROUTER, 0.5)
    ),
    Trouble(
        "QuireNoReadyReplicas",
        reason("WorkloadAvailable", "MinimumReplicasUnavailable")
        | {
            f'quire_llmdeployment_replicas{{{DEPLOYMENT},state="ready"}}': (
                f"4+0x30 0+0x{NUM_MINUTES}"
            )
        },
        at_minute=40,
    ),
    Trouble("QuireDeploymentNotReady", reason("Ready", "PodsNotReady")),
    Trouble("QuireSpecRejected", reason("Accepted", "ArgsConflict")),
    Trouble("QuireRolloutStuck", reason("Progressing", "ProgressDeadlineExceeded")),
    Trouble("QuireCapacityMissing", reason("Ready", "InsufficientCapacity")),
    Trouble("QuireModelDownloadFailed", reason("ModelCached", "AuthFailed")),
    Trouble("QuireReplicasLost", {degraded("True"): always(1)}),
    Trouble("QuireAutoscalerFailing", reason("AutoscalerReady", "MetricsAPIMissing")),
    Trouble(
        "QuireEngineStuck",
        {f"quire_engine_last_step_age_seconds{{{_FIRST}}}": growing(60)},
        at_minute=10,
    ),
    Trouble(
        "QuireEngineRestarting",
        {f"process_start_time_seconds{{{_FIRST}}}": "1+0x20 2+0x5 3+0x5 4+0x400"},
        at_minute=35,
    ),
    Trouble(
        "QuireQueueGrowing",
        {f"quire_engine_num_requests_waiting{{{engine(pod)}}}": always(40) for pod in PODS},
    ),
    Trouble("QuireKvCacheFull", {f"quire_engine_kv_cache_usage_ratio{{{_FIRST}}}": always(0.99)}),
    Trouble(
        "QuirePreemptionsHigh", {f"quire_engine_num_preemptions_total{{{_FIRST}}}": growing(60)}
    ),
    Trouble(
        "QuirePrefixHitsCollapsed",
        {
            f"quire_engine_prefix_cache_hits_total{{{engine(pod)}}}": "0+80x120 9600+1x300"
            for pod in PODS
        },
        at_minute=150,
    ),
    Trouble(
        "QuireKernelsCompiledLate",
        {f"quire_engine_kernel_compiles_after_ready_total{{{_FIRST}}}": "0+0x30 1+0x400"},
        at_minute=35,
    ),
    Trouble("QuireScrapeFailing", {f"up{{{_FIRST}}}": always(0)}),
    Trouble(
        "QuireRouterNoReplicas",
        {f"quire_router_replica_up{{{towards(pod)}}}": always(0) for pod in PODS},
    ),
    Trouble(
        "QuireDiscoveryStale",
        {f'quire_router_discovery_age_seconds{{{ROUTER},source="chat-engine"}}': growing(60)},
    ),
    Trouble(
        "QuireBreakerOpen", {f"quire_router_replica_breaker_open{{{towards(PODS[0])}}}": always(1)}
    ),
    Trouble(
        "QuireLoadSkewed",
        {f"quire_engine_num_requests_running{{{engine(pod)}}}": always(0) for pod in PODS[1:]}
        | {f"quire_engine_num_requests_waiting{{{engine(pod)}}}": always(0) for pod in PODS[1:]}
        | {f"quire_engine_num_requests_running{{{_FIRST}}}": always(30)},
    ),
    Trouble(
        "QuirePrefixIndexDegraded",
        {
            f'quire_router_replica_prefix_index_mode{{{towards(PODS[0])},mode="{mode}"}}': value
            for mode, value in {"exact": always(0), "degraded": always(1)}.items()
        },
    ),
    Trouble(
        "QuireRouterWorkersRestarting",
        {f"quire_router_worker_restarts_total{{{ROUTER}}}": "0+0x20 1+1x3 4+0x400"},
        at_minute=30,
    ),
    Trouble("QuireRouterOverloaded", histogram("quire_router_event_loop_lag_seconds", ROUTER, 1)),
    Trouble("QuireOperatorDown", {f"quire_operator_leader{{{OPERATOR}}}": always(0)}),
    Trouble(
        "QuireOperatorReconcileErrors",
        {f"controller_runtime_reconcile_errors_total{{{CONTROLLER}}}": growing(2)},
    ),
    Trouble("QuireOperatorBacklog", {f"workqueue_depth{{{CONTROLLER}}}": always(50)}),
    Trouble(
        "QuireOperatorBlind",
        {f'quire_operator_watch_silence_seconds{{{OPERATOR},kind="Pod"}}': growing(60)},
    ),
)
"""One for each alert."""

QUIET: Mapping[str, Series] = {
    "healthy": {},
    "scaled to zero": reason("Ready", "ScaledToZero")
    | reason("WorkloadAvailable", "ScaledToZero")
    | {f'quire_llmdeployment_replicas{{{DEPLOYMENT},state="ready"}}': always(0)}
    | {f"quire_router_requests_in_flight{{{ROUTER}}}": always(0)}
    | {f"quire_router_replica_up{{{towards(pod)}}}": f"_x{NUM_MINUTES}" for pod in PODS},
    "suspended": reason("Ready", "Suspended") | reason("Progressing", "Suspended"),
    "downloading": reason("Ready", "ModelDownloading") | reason("ModelCached", "Downloading"),
    "rolling out": reason("Progressing", "NewRevision"),
    "idle": {key: growing(0) for key in HEALTHY if "_total" in key or "_bucket" in key}
    | {key: always(0) for key in HEALTHY if "num_requests" in key or "in_flight" in key},
    "health checks that fail": {requests("503", "/readyz"): growing(240)},
    "one worker that was restarted": {
        f"quire_router_worker_restarts_total{{{ROUTER}}}": f"0+0x10 1+0x{NUM_MINUTES}"
    },
    "one failed request": {requests("500"): f"0+0x200 1+0x{NUM_MINUTES}"},
}
"""States in which nobody must be woken."""
