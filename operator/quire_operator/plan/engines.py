"""The engines: a StatefulSet of single pods, or one StatefulSet for each replica of several pods.

A StatefulSet keeps a pod's name over its life, so that routers, dashboards and people can follow a
replica, and `podManagementPolicy: Parallel` starts all of them at once.
"""

from collections.abc import Iterable
from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.engine_flags import GRPC_PORT, METRICS_PORT
from quire_operator.plan.engine_pod import engine_template
from quire_operator.plan.gang import gang_mode, with_gang
from quire_operator.plan.hashing import hash_of
from quire_operator.plan.labels import (
    ENGINE,
    GANG_ANNOTATION,
    LEADER_LABEL,
    REPLICA_LABEL,
    TEMPLATE_HASH_ANNOTATION,
    selector_labels,
)

MAX_REVISIONS = 5
"""Old revisions that a StatefulSet keeps, for `kubectl rollout undo` and for looking."""

Json = dict[str, Any]


def engine_service(ctx: Context) -> Manifest:
    """Return the headless Service whose EndpointSlices the routers watch.

    Its ports have names: that is how a router finds the gRPC port.
    """
    selector = selector_labels(ctx.name, ENGINE)
    if ctx.is_grouped:
        selector[LEADER_LABEL] = "0"
    return ctx.child("v1", "Service", ctx.engine_name, ENGINE, spec=_headless(selector))


def set_template(ctx: Context, replica: int | None = None) -> Json:
    """Return a StatefulSet's pod template; `replica` is the index of its group.

    It carries its own hash, so that a pod tells what it was made from, whatever the StatefulSet
    has become since.
    """
    template = engine_template(ctx, replica=replica)
    if replica is not None:
        template = with_gang(ctx, template, replica)
    metadata = template["metadata"]
    own = {TEMPLATE_HASH_ANNOTATION: hash_of(template)}
    annotations = metadata.get("annotations", {}) | own
    return template | {"metadata": metadata | {"annotations": annotations}}


def template_hash(template: Json) -> str:
    """Return the hash that a template of `set_template` carries."""
    found: str = template["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    return found


def engine_set(ctx: Context, update_strategy: Json) -> Manifest:
    """Return the StatefulSet of single-pod replicas."""
    template = set_template(ctx)
    spec: Json = {
        "replicas": ctx.num_replicas,
        "serviceName": ctx.engine_name,
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": MAX_REVISIONS,
        "selector": {"matchLabels": selector_labels(ctx.name, ENGINE)},
        "updateStrategy": update_strategy,
        "template": template,
    }
    return _stateful_set(ctx, ctx.engine_name, template, spec)


def group_objects(ctx: Context, replicas: Iterable[int]) -> list[Manifest]:
    """Return a headless Service and a StatefulSet for each of these replicas of several pods."""
    objects = []
    for index in replicas:
        objects += [_group_service(ctx, index), group_set(ctx, index)]
    return objects


def group_set(ctx: Context, index: int) -> Manifest:
    """Return the StatefulSet of one group.

    Its pods are replaced by us and together: a group of two revisions cannot work.
    """
    template = set_template(ctx, index)
    spec: Json = {
        "replicas": ctx.spec.parallelism.nodes_per_replica,
        "serviceName": ctx.group_name(index),
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": MAX_REVISIONS,
        "selector": {"matchLabels": _group_selector(ctx, index)},
        "updateStrategy": {"type": "OnDelete"},
        "template": template,
    }
    manifest = _stateful_set(ctx, ctx.group_name(index), template, spec)
    manifest["metadata"]["annotations"][GANG_ANNOTATION] = gang_mode(ctx)
    return manifest


def _group_service(ctx: Context, index: int) -> Manifest:
    """Its members must find each other before any of them is ready."""
    spec = _headless(_group_selector(ctx, index)) | {"publishNotReadyAddresses": True}
    return ctx.child("v1", "Service", ctx.group_name(index), ENGINE, spec=spec)


def _group_selector(ctx: Context, index: int) -> dict[str, str]:
    return selector_labels(ctx.name, ENGINE) | {REPLICA_LABEL: str(index)}


def _headless(selector: dict[str, str]) -> Json:
    return {
        "clusterIP": "None",
        "selector": selector,
        "ports": [
            {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "appProtocol": "grpc"},
            {"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"},
        ],
    }


def _stateful_set(ctx: Context, name: str, template: Json, spec: Json) -> Manifest:
    annotations = {TEMPLATE_HASH_ANNOTATION: template_hash(template)}
    return ctx.child("apps/v1", "StatefulSet", name, ENGINE, annotations=annotations, spec=spec)
