"""The pod template of engines."""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.engine_flags import (
    GRPC_PORT,
    METRICS_PORT,
    RENDEZVOUS_PORT,
    engine_flags,
)
from quire_operator.plan.labels import ENGINE, LEADER_LABEL, REPLICA_LABEL
from quire_operator.plan.overlay import overlay
from quire_operator.plan.placement import placement_fields
from quire_operator.plan.pod_parts import (
    CACHE_FOLDER,
    container_security,
    image_fields,
    pod_security,
    scratch_volumes,
    token_env,
)
from quire_operator.plan.weights import (
    init_containers,
    is_fetched_before,
    weights_env,
    weights_mounts,
    weights_volumes,
)

CONTAINER = "engine"
KILL_MARGIN_SECONDS = 10
"""Left of the grace period after the drain, to end processes and free the GPU."""
STARTUP_PERIOD_SECONDS = 5
LIVENESS_PERIOD_SECONDS = 10

Json = dict[str, Any]


def grace_period_seconds(ctx: Context) -> int:
    """Return the time between a pod's deletion and its end by force."""
    drain = ctx.spec.drain
    return drain.pre_stop_seconds + drain.timeout_seconds + KILL_MARGIN_SECONDS


def engine_template(ctx: Context, *, replica: int | None = None) -> Json:
    """Return the pod template; `replica` is the index of the group that the pod belongs to."""
    labels = ctx.labels(ENGINE)
    if replica is not None:
        labels[REPLICA_LABEL] = str(replica)
    base: Json = {"metadata": {"labels": labels}, "spec": _pod_spec(ctx, replica)}
    template = ctx.spec.pod_template
    if template is None:
        return base
    top = {"metadata": template.metadata or {}, "spec": template.spec or {}}
    merged: Json = overlay(base, top)
    # What finds the pods again is ours.
    merged["metadata"]["labels"] = merged["metadata"].get("labels", {}) | labels
    return merged


def _pod_spec(ctx: Context, replica: int | None) -> Json:
    spec: Json = {
        "terminationGracePeriodSeconds": grace_period_seconds(ctx),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [_container(ctx, replica)],
        "volumes": _volumes(ctx),
        **placement_fields(ctx, replica=replica),
        **image_fields(ctx),
    }
    if containers := init_containers(ctx):
        spec["initContainers"] = containers
    if claims := _resource_claims(ctx, replica):
        spec["resourceClaims"] = claims
    return spec


def _container(ctx: Context, replica: int | None) -> Json:
    engine = ctx.spec.engine
    container: Json = {
        "name": CONTAINER,
        "image": engine.image or ctx.settings.engine_image,
        "imagePullPolicy": engine.image_pull_policy or ctx.settings.image_pull_policy,
        "command": ["quire", "engine"],
        "args": engine_flags(ctx, replica=replica),
        "env": _env(ctx, replica),
        "ports": _ports(replica),
        "resources": _resources(ctx, replica),
        "securityContext": _container_security(ctx),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(ctx),
        **_probes(ctx),
    }
    if ctx.spec.drain.pre_stop_seconds:
        # The kubelet sleeps itself: the image needs no shell for it.
        sleep = {"sleep": {"seconds": ctx.spec.drain.pre_stop_seconds}}
        container["lifecycle"] = {"preStop": sleep}
    return {name: value for name, value in container.items() if value != []}


def _container_security(ctx: Context) -> Json:
    # NVIDIA's runtime hook mounts the driver into the root filesystem of a container with GPUs.
    return container_security(is_read_only=ctx.spec.engine.device == "cpu")


def _ports(replica: int | None) -> list[Json]:
    ports = [
        {"name": "grpc", "containerPort": GRPC_PORT},
        {"name": "metrics", "containerPort": METRICS_PORT},
    ]
    if replica is not None:
        ports.append({"name": "rendezvous", "containerPort": RENDEZVOUS_PORT})
    return ports


def _env(ctx: Context, replica: int | None) -> list[Json]:
    env: list[Json] = []
    if replica is not None:
        rank = {"fieldRef": {"fieldPath": f"metadata.labels['{LEADER_LABEL}']"}}
        env.append({"name": "QUIRE_NODE_RANK", "valueFrom": rank})
    env += weights_env(ctx)
    if ctx.source.scheme == "hf":
        if is_fetched_before(ctx):
            # A pod that starts while the hub is away or limits us must not care.
            env.append({"name": "HF_HUB_OFFLINE", "value": "1"})
        else:
            env += token_env(ctx)
    own = {entry["name"]: entry for entry in env}
    for entry in ctx.spec.engine.env:
        given: Json = {"name": entry.name}
        if entry.value_from is not None:
            given["valueFrom"] = dict(entry.value_from)
        elif entry.value is not None:
            given["value"] = entry.value
        own[entry.name] = given
    return list(own.values())


def _resources(ctx: Context, replica: int | None) -> Json:
    wanted = ctx.spec.resources
    requests: Json = {"cpu": str(wanted.cpu), "memory": str(wanted.memory)}
    limits: Json = {"memory": str(wanted.memory)}
    if wanted.ephemeral_storage is not None:
        requests["ephemeral-storage"] = str(wanted.ephemeral_storage)
        limits["ephemeral-storage"] = str(wanted.ephemeral_storage)
    if ctx.gpus_per_pod and wanted.dra is None:
        requests[ctx.gpu_resource] = str(ctx.gpus_per_pod)
        limits[ctx.gpu_resource] = str(ctx.gpus_per_pod)
    resources: Json = {"requests": requests, "limits": limits}
    if claims := _resource_claims(ctx, replica):
        resources["claims"] = [{"name": claim["name"]} for claim in claims]
    return resources


def _resource_claims(ctx: Context, replica: int | None) -> list[Json]:
    claims = []
    if ctx.spec.resources.dra is not None:
        claims.append({"name": "gpus", "resourceClaimTemplateName": f"{ctx.name}-gpus"})
    if replica is not None and has_compute_domain(ctx):
        name = f"{ctx.group_name(replica)}-channel"
        claims.append({"name": "channel", "resourceClaimTemplateName": name})
    return claims


def has_compute_domain(ctx: Context) -> bool:
    """Tell whether groups get a ComputeDomain each."""
    nvlink = ctx.spec.placement.nvlink
    domain = nvlink.compute_domain if nvlink else None
    return domain is not None and domain.create and ctx.is_grouped


def _volumes(ctx: Context) -> list[Json]:
    shm = {"medium": "Memory", "sizeLimit": str(ctx.spec.resources.shm)}
    return [*weights_volumes(ctx), *scratch_volumes(), {"name": "shm", "emptyDir": shm}]


def _mounts(ctx: Context) -> list[Json]:
    return [
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *weights_mounts(ctx, is_writable=not is_fetched_before(ctx)),
    ]


def _probes(ctx: Context) -> Json:
    """Start-up has a long budget of its own, so that liveness can be strict afterwards."""
    probes = ctx.spec.probes
    check = {"grpc": {"port": GRPC_PORT}}
    return {
        "startupProbe": check
        | {
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": -(-probes.startup_seconds // STARTUP_PERIOD_SECONDS),
        },
        "readinessProbe": check | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
        # The engine tells apart what a restart would mend from loading and draining.
        "livenessProbe": {"grpc": {"port": GRPC_PORT, "service": "liveness"}}
        | {
            "periodSeconds": LIVENESS_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": max(
                1, -(-probes.liveness_failure_seconds // LIVENESS_PERIOD_SECONDS)
            ),
        },
    }
