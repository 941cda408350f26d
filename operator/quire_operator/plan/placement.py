"""Where engine pods may run: the spec's wishes in the language of pods."""

from typing import Any

from quire_operator.capacity import (
    CapacityError,
    Demand,
    NvlinkMode,
    Toleration,
    node_preferences,
    node_selector_terms,
    parse_bytes,
)
from quire_operator.capacity.demand import NVLINK_LABEL
from quire_operator.plan.context import Context
from quire_operator.plan.labels import DEPLOYMENT_LABEL, ENGINE, REPLICA_LABEL, selector_labels

HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
DEFAULT_DOMAIN_KEY = "nvidia.com/gpu.clique"

Json = dict[str, Any]


def demand(ctx: Context) -> Demand:
    """Return what one engine pod wants of a node."""
    placement = ctx.spec.placement
    nvlink = placement.nvlink
    label = nvlink.node_label if nvlink else None
    nvlink_label = (label.key, label.value) if label else ctx.settings.nvlink_label
    return Demand(
        num_gpus=ctx.gpus_per_pod,
        tensor_parallel_size=ctx.spec.parallelism.tensor,
        num_replicas=ctx.num_replicas,
        pods_per_replica=ctx.spec.parallelism.nodes_per_replica,
        resource=ctx.gpu_resource,
        nvlink=_nvlink_mode(ctx),
        nvlink_label=nvlink_label or NVLINK_LABEL,
        domain_label=domain_key(ctx),
        products=placement.gpu_products,
        min_gpu_bytes=_min_gpu_bytes(ctx),
        node_selector=placement.node_selector,
        tolerations=tuple(_as_toleration(entry) for entry in tolerations(ctx)),
    )


def tolerations(ctx: Context) -> list[Json]:
    """Return the pod's tolerations: the GPU resource's own, the operator's, the spec's."""
    own: list[Json] = []
    if ctx.gpus_per_pod:
        own.append({"key": ctx.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    own += [dict(entry) for entry in ctx.settings.default_tolerations]
    for entry in ctx.spec.placement.tolerations:
        fields = {
            "key": entry.key,
            "operator": entry.operator,
            "value": entry.value,
            "effect": entry.effect,
            "tolerationSeconds": entry.toleration_seconds,
        }
        own.append({name: value for name, value in fields.items() if value is not None})
    return own


def affinity(ctx: Context, *, replica: int | None = None) -> Json:
    """Return the pod's affinity; `replica` is the index of a group, None for single pods."""
    wanted = demand(ctx)
    node: Json = {}
    # DRA names devices itself, and their nodes need not carry the device plugin's labels.
    if ctx.spec.resources.dra is None:
        if terms := node_selector_terms(wanted):
            node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
        if preferences := node_preferences(wanted):
            node["preferredDuringSchedulingIgnoredDuringExecution"] = preferences
    result: Json = {"nodeAffinity": node} if node else {}
    return result if replica is None else result | _group_affinity(ctx, replica, wanted)


def topology_spread(ctx: Context) -> list[Json]:
    """Return soft constraints that spread replicas over nodes and zones."""
    if ctx.spec.placement.topology_spread == "None" or ctx.is_grouped:
        return []
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector_labels(ctx.name, ENGINE)},
        }
        for key in (HOSTNAME, ZONE)
    ]


def placement_fields(ctx: Context, *, replica: int | None = None) -> Json:
    """Return everything of a pod's spec that decides where it runs."""
    placement = ctx.spec.placement
    fields = {
        "affinity": affinity(ctx, replica=replica),
        "nodeSelector": dict(placement.node_selector),
        "tolerations": tolerations(ctx),
        "topologySpreadConstraints": topology_spread(ctx),
        "priorityClassName": placement.priority_class_name,
        "runtimeClassName": placement.runtime_class_name,
        "schedulerName": placement.scheduler_name,
    }
    return {name: value for name, value in fields.items() if value}


def domain_key(ctx: Context) -> str:
    """Return the node label that nodes of one multi-node NVLink domain share."""
    nvlink = ctx.spec.placement.nvlink
    return nvlink.domain_key if nvlink else DEFAULT_DOMAIN_KEY


def _group_affinity(ctx: Context, replica: int, wanted: Demand) -> Json:
    """Keep the pods of a group on different nodes, and those nodes in one NVLink domain.

    Without the second rule nothing but luck would put them into one domain; with it the first pod
    chooses, and the others follow.
    """
    member = {"matchLabels": {DEPLOYMENT_LABEL: ctx.name, REPLICA_LABEL: str(replica)}}
    apart = {"labelSelector": member, "topologyKey": HOSTNAME}
    result: Json = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    together = {"labelSelector": member, "topologyKey": domain_key(ctx)}
    if wanted.spans_nodes and wanted.nvlink is NvlinkMode.REQUIRED:
        rules: Json = {"requiredDuringSchedulingIgnoredDuringExecution": [together]}
    else:
        preference = {"weight": 100, "podAffinityTerm": together}
        rules = {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}
    return result | {"podAffinity": rules}


def _nvlink_mode(ctx: Context) -> NvlinkMode:
    nvlink = ctx.spec.placement.nvlink
    if nvlink and nvlink.mode:
        return NvlinkMode(nvlink.mode)
    return NvlinkMode.REQUIRED if ctx.spec.parallelism.tensor > 1 else NvlinkMode.IGNORED


def _min_gpu_bytes(ctx: Context) -> int:
    least = ctx.spec.placement.min_gpu_memory
    if least is None:
        return 0
    try:
        return parse_bytes(least)
    except CapacityError:  # the CRD's pattern admits nothing else; an older one might
        return 0


def _as_toleration(entry: Json) -> Toleration:
    return Toleration(
        key=entry.get("key", ""),
        operator=entry.get("operator", "Equal"),
        value=entry.get("value", ""),
        effect=entry.get("effect", ""),
    )
