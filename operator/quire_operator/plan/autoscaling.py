"""Autoscaling: an HPA or a ScaledObject that writes `llmdeployments/scale`, never the StatefulSet.

So there is one writer of the StatefulSet's replicas, us, and nobody to fight with.
"""

from typing import Any

from quire_operator.api import API_VERSION, KIND, Condition
from quire_operator.api.conditions import AUTOSCALER_READY, FALSE, TRUE
from quire_operator.api.spec import Autoscaling, AutoscalingMetric
from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import ENGINE

SCALED_OBJECT = ("keda.sh/v1alpha1", "ScaledObject")
HPA = ("autoscaling/v2", "HorizontalPodAutoscaler")
CUSTOM_METRICS = "custom.metrics.k8s.io/"

_PODS_METRICS = {
    "queueDepth": "quire_engine_num_requests_waiting",
    "kvCachePercent": "quire_engine_kv_cache_usage_ratio",
    "runningRequests": "quire_engine_num_requests_running",
    "tokensPerSecond": "quire_engine_generation_tokens_per_second",
}
_QUERIES = {
    "queueDepth": "sum(quire_engine_num_requests_waiting{%s})",
    "kvCachePercent": "100 * sum(quire_engine_kv_cache_usage_ratio{%s})",
    "runningRequests": "sum(quire_engine_num_requests_running{%s})",
    "tokensPerSecond": "sum(rate(quire_engine_generation_tokens_total{%s}[1m]))",
}
_WAKE_QUERY = "sum(quire_router_requests_in_flight{%s})"
"""Requests at the routers: the only sign of load while no engine runs."""

Json = dict[str, Any]


def autoscaling_objects(ctx: Context) -> list[Manifest]:
    """Return the autoscaler, if one is asked for and can be made."""
    scaling = ctx.spec.autoscaling
    # A suspended deployment keeps none: it would wake what was put to sleep.
    if scaling is None or ctx.spec.suspend:
        return []
    if scaling.provider == "hpa":
        return [_hpa(ctx, scaling)]
    if not ctx.has_api(*SCALED_OBJECT) or not _prometheus(ctx, scaling):
        return []
    return [_scaled_object(ctx, scaling)]


def autoscaler_condition(ctx: Context) -> Condition:
    """Judge whether load changes the number of replicas."""
    scaling = ctx.spec.autoscaling
    if scaling is None:
        return _yes("NotRequired", "spec.autoscaling is absent: scale with `kubectl scale llmd`")
    if scaling.provider == "keda":
        return _keda_condition(ctx, scaling)
    if not any(api.startswith(CUSTOM_METRICS) for api, _ in ctx.observed.apis):
        return _no(
            "MetricsAPIMissing",
            "the HPA exists, but the cluster serves no custom.metrics.k8s.io: install "
            "prometheus-adapter, or use spec.autoscaling.provider keda",
        )
    return _live_condition(ctx, *HPA, condition_type="ScalingActive")


def _keda_condition(ctx: Context, scaling: Autoscaling) -> Condition:
    if not ctx.has_api(*SCALED_OBJECT):
        return _no(
            "CRDNotInstalled",
            "spec.autoscaling.provider is keda, and the cluster has no ScaledObjects: install "
            "KEDA, or use provider hpa; until then replicas stay as they are",
        )
    if not _prometheus(ctx, scaling):
        return _no(
            "PrometheusAddressMissing",
            "KEDA needs to know which Prometheus to ask: set spec.autoscaling.prometheusAddress, "
            "as http://prometheus.monitoring:9090",
        )
    return _live_condition(ctx, *SCALED_OBJECT, condition_type="Ready")


def _live_condition(ctx: Context, api_version: str, kind: str, *, condition_type: str) -> Condition:
    live = ctx.live(api_version, kind, ctx.name) or {}
    for entry in live.get("status", {}).get("conditions") or ():
        if entry.get("type") == condition_type and entry.get("status") == "False":
            return _no("Failing", f"{kind} {ctx.name}: {entry.get('message') or 'no reason given'}")
    return _yes("Ready", f"{kind} {ctx.name} sets the number of replicas")


def _hpa(ctx: Context, scaling: Autoscaling) -> Manifest:
    spec = {
        "scaleTargetRef": _target(ctx),
        "minReplicas": max(1, scaling.min_replicas),
        "maxReplicas": scaling.max_replicas,
        "metrics": [_hpa_metric(metric) for metric in scaling.metrics],
        "behavior": _behavior(scaling),
    }
    return ctx.child(*HPA, ctx.name, ENGINE, spec=spec)


def _hpa_metric(metric: AutoscalingMetric) -> Json:
    if metric.type == "external":
        target = {"type": "AverageValue", "averageValue": str(metric.target)}
        return {"type": "External", "external": {"metric": {"name": metric.name}, "target": target}}
    # The cache's use is a ratio, and quantities have no fractions but thousandths.
    value = f"{metric.target * 10}m" if metric.type == "kvCachePercent" else str(metric.target)
    target = {"type": "AverageValue", "averageValue": value}
    return {
        "type": "Pods",
        "pods": {"metric": {"name": _PODS_METRICS[metric.type]}, "target": target},
    }


def _scaled_object(ctx: Context, scaling: Autoscaling) -> Manifest:
    address = _prometheus(ctx, scaling)
    triggers = [_trigger(address, _query(ctx, metric), metric.target) for metric in scaling.metrics]
    spec: Json = {
        "scaleTargetRef": _target(ctx),
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
    }
    if scaling.min_replicas == 0:
        wake = _trigger(address, _WAKE_QUERY % _matchers(ctx), ctx.spec.engine.max_num_seqs)
        wake["metadata"]["activationThreshold"] = "0"
        triggers.append(wake)
        spec["cooldownPeriod"] = (
            scaling.scale_to_zero.idle_seconds if scaling.scale_to_zero else 1800
        )
    spec["triggers"] = triggers
    return ctx.child(*SCALED_OBJECT, ctx.name, ENGINE, spec=spec)


def _trigger(address: str, query: str, target: int) -> Json:
    metadata = {"serverAddress": address, "query": query, "threshold": str(target)}
    return {"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}


def _query(ctx: Context, metric: AutoscalingMetric) -> str:
    if metric.type == "external":
        return metric.name or ""
    return _QUERIES[metric.type] % _matchers(ctx)


def _matchers(ctx: Context) -> str:
    return f'namespace="{ctx.namespace}",quire_dev_deployment="{ctx.name}"'


def _target(ctx: Context) -> Json:
    return {"apiVersion": API_VERSION, "kind": KIND, "name": ctx.name}


def _behavior(scaling: Autoscaling) -> Json:
    """One replica a minute leaves at most: each takes its cache with it."""
    up, down = scaling.behavior.up, scaling.behavior.down
    return {
        "scaleUp": {"stabilizationWindowSeconds": up.stabilization_seconds},
        "scaleDown": {
            "stabilizationWindowSeconds": down.stabilization_seconds,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }


def _prometheus(ctx: Context, scaling: Autoscaling) -> str:
    return scaling.prometheus_address or ctx.settings.prometheus_address


def _yes(reason: str, message: str) -> Condition:
    return Condition(AUTOSCALER_READY, TRUE, reason, message)


def _no(reason: str, message: str) -> Condition:
    return Condition(AUTOSCALER_READY, FALSE, reason, message)
