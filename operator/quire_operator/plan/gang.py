"""Scheduling the pods of a group together or not at all, through what the cluster offers.

Half a group holds GPUs and serves nothing, and two halves can wait for each other for ever.
"""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import ENGINE, GANG_ANNOTATION

NATIVE = ("scheduling.k8s.io/v1beta1", "PodGroup")
VOLCANO = ("scheduling.volcano.sh/v1beta1", "PodGroup")
COSCHEDULING = ("scheduling.x-k8s.io/v1alpha1", "PodGroup")

_APIS = {"PodGroup": NATIVE, "Volcano": VOLCANO, "Coscheduling": COSCHEDULING}
"""Modes in the order in which Auto prefers them."""
NO_GANG = "None"

Json = dict[str, Any]


def gang_mode(ctx: Context) -> str:
    """Return the scheduler's kind of group that pods are made for.

    Auto decides once, when the groups are made: a scheduler that is installed later must not
    restart what runs.
    """
    if not ctx.is_grouped:
        return NO_GANG
    wanted = ctx.spec.placement.gang
    if wanted != "Auto":
        return wanted if wanted == NO_GANG or ctx.has_api(*_APIS[wanted]) else NO_GANG
    if live := ctx.live("apps/v1", "StatefulSet", ctx.group_name(0)):
        decided: str = live["metadata"].get("annotations", {}).get(GANG_ANNOTATION, NO_GANG)
        return decided
    return next((mode for mode, api in _APIS.items() if ctx.has_api(*api)), NO_GANG)


def missing_gang_api(ctx: Context) -> list[str]:
    """Return a sentence if the spec insists on a kind of group that the cluster lacks."""
    wanted = ctx.spec.placement.gang
    if not ctx.is_grouped or wanted not in _APIS or ctx.has_api(*_APIS[wanted]):
        return []
    api_version, kind = _APIS[wanted]
    return [
        f"spec.placement.gang {wanted} needs {kind} of {api_version}, which the cluster lacks: "
        "install that scheduler, or use Auto; until then pods are scheduled one by one"
    ]


def gang_objects(ctx: Context) -> list[Manifest]:
    """Return a PodGroup for each replica."""
    mode, size = gang_mode(ctx), ctx.spec.parallelism.nodes_per_replica
    if mode == NO_GANG:
        return []
    spec: Json = {"minMember": size}
    if mode == "PodGroup":
        spec = {"schedulingPolicy": {"gang": {"minCount": size}}}
    return [
        ctx.child(*_APIS[mode], ctx.group_name(index), ENGINE, spec=spec)
        for index in range(ctx.num_replicas)
    ]


def with_gang(ctx: Context, template: Json, replica: int) -> Json:
    """Return a group's pod template with its membership."""
    metadata, spec = dict(template["metadata"]), dict(template["spec"])
    name = ctx.group_name(replica)
    match gang_mode(ctx):
        case "PodGroup":
            spec["schedulingGroup"] = {"podGroupName": name}
        case "Volcano":
            annotation = {"scheduling.k8s.io/group-name": name}
            metadata["annotations"] = metadata.get("annotations", {}) | annotation
            spec.setdefault("schedulerName", "volcano")
        case "Coscheduling":
            label = {"scheduling.x-k8s.io/pod-group": name}
            metadata["labels"] = metadata["labels"] | label
    return {"metadata": metadata, "spec": spec}
