"""Children of kinds that a cluster may lack: PodMonitor, claims for GPUs, groups for schedulers.

A kind that is missing never fails a plan. Where the spec insists on it, `missing_apis` says so.
"""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.engine_pod import has_compute_domain
from quire_operator.plan.labels import (
    COMPONENT_LABEL,
    DEPLOYMENT_LABEL,
    ENGINE,
    ROUTER,
)

POD_MONITOR = ("monitoring.coreos.com/v1", "PodMonitor")
CLAIM_TEMPLATE = ("resource.k8s.io/v1", "ResourceClaimTemplate")
COMPUTE_DOMAIN = ("resource.nvidia.com/v1beta1", "ComputeDomain")

Json = dict[str, Any]


def optional_objects(ctx: Context) -> list[Manifest]:
    """Return those children whose kinds the cluster has."""
    objects: list[Manifest] = []
    if _wants_claims(ctx) and ctx.has_api(*CLAIM_TEMPLATE):
        objects.append(_claim_template(ctx))
    if has_compute_domain(ctx) and ctx.has_api(*COMPUTE_DOMAIN):
        objects += [_compute_domain(ctx, index) for index in range(ctx.num_replicas)]
    if _wants_monitor(ctx) and ctx.has_api(*POD_MONITOR):
        objects.append(_pod_monitor(ctx))
    return objects


def missing_apis(ctx: Context) -> list[str]:
    """Return a sentence for each kind that the spec insists on and the cluster lacks."""
    missing = []
    if _wants_claims(ctx) and not ctx.has_api(*CLAIM_TEMPLATE):
        missing.append(
            "spec.resources.dra needs resource.k8s.io/v1, which Kubernetes has from 1.34 on: "
            "upgrade, or use gpuResourceName in a new LLMDeployment"
        )
    if has_compute_domain(ctx) and not ctx.has_api(*COMPUTE_DOMAIN):
        missing.append(
            "spec.placement.nvlink.computeDomain needs NVIDIA's DRA driver: install "
            "nvidia-dra-driver-gpu, or set computeDomain.create to false"
        )
    wants_monitor = ctx.spec.observability.pod_monitor.enabled == "Always"
    if wants_monitor and not ctx.has_api(*POD_MONITOR):
        missing.append(
            "spec.observability.podMonitor.enabled is Always, and the cluster has no PodMonitors: "
            "install the Prometheus operator, or use Auto"
        )
    return missing


def _wants_claims(ctx: Context) -> bool:
    return ctx.spec.resources.dra is not None and ctx.gpus_per_pod > 0


def _wants_monitor(ctx: Context) -> bool:
    return ctx.settings.pod_monitors and ctx.spec.observability.pod_monitor.enabled != "Never"


def _claim_template(ctx: Context) -> Manifest:
    dra = ctx.spec.resources.dra
    assert dra is not None, "claims are wanted only with spec.resources.dra"
    exactly: Json = {
        "deviceClassName": dra.device_class_name,
        "allocationMode": "ExactCount",
        "count": dra.count or ctx.gpus_per_pod,
    }
    if dra.selectors:
        exactly["selectors"] = [{"cel": {"expression": text}} for text in dra.selectors]
    spec = {"spec": {"devices": {"requests": [{"name": "gpus", "exactly": exactly}]}}}
    return ctx.child(*CLAIM_TEMPLATE, f"{ctx.name}-gpus", ENGINE, spec=spec)


def _compute_domain(ctx: Context, index: int) -> Manifest:
    name = ctx.group_name(index)
    spec = {
        "numNodes": ctx.spec.parallelism.nodes_per_replica,
        "channel": {"resourceClaimTemplate": {"name": f"{name}-channel"}},
    }
    return ctx.child(*COMPUTE_DOMAIN, name, ENGINE, spec=spec)


def _pod_monitor(ctx: Context) -> Manifest:
    wanted = ctx.spec.observability.pod_monitor
    endpoints = [{"port": "metrics", "interval": wanted.interval}]
    if ctx.spec.router.enabled:
        endpoints.append({"port": "http", "path": "/metrics", "interval": wanted.interval})
    components = {"key": COMPONENT_LABEL, "operator": "In", "values": [ENGINE, ROUTER]}
    spec = {
        "selector": {
            "matchLabels": {DEPLOYMENT_LABEL: ctx.name},
            "matchExpressions": [components],
        },
        "podTargetLabels": [DEPLOYMENT_LABEL, COMPONENT_LABEL],
        "podMetricsEndpoints": endpoints,
    }
    monitor = ctx.child(*POD_MONITOR, ctx.name, ENGINE, spec=spec)
    labels = {**ctx.settings.pod_monitor_labels, **wanted.labels}
    monitor["metadata"]["labels"] = labels | monitor["metadata"]["labels"]
    return monitor
