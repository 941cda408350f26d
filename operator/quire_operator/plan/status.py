"""The status of a deployment. Equal facts give an equal status, so that it need not be written."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quire_operator.api import merge_conditions, timestamp
from quire_operator.capacity.nodes import CLIQUE_LABEL
from quire_operator.plan.capacity_check import Capacity
from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.download import Download
from quire_operator.plan.labels import ENGINE, LEADER_LABEL, selector_text
from quire_operator.plan.replicas import Replica, Replicas
from quire_operator.plan.rollout import partition
from quire_operator.plan.routers import service_url
from quire_operator.plan.summary import Conditions
from quire_operator.plan.workload import ready_routers

MAX_REPLICA_STATUSES = 64

Json = dict[str, Any]


def build_status(
    ctx: Context,
    replicas: Replicas,
    conditions: Conditions,
    *,
    phase: str,
    capacity: Capacity,
    download: Download,
) -> Manifest:
    """Return the whole status."""
    current, update = _revisions(ctx, replicas)
    status: Json = {
        "observedGeneration": ctx.generation,
        "phase": phase,
        "conditions": merge_conditions(
            conditions.all,
            ctx.status.get("conditions") or (),
            generation=ctx.generation,
            now=ctx.observed.now,
        ),
        "replicas": replicas.num_existing,
        "readyReplicas": replicas.num_serving,
        "updatedReplicas": replicas.num_updated,
        "availableReplicas": replicas.num_available(partition(ctx)),
        "selector": replica_selector(ctx),
        "currentRevision": current,
        "updateRevision": update,
        "gpus": {
            "perReplica": ctx.gpus_per_replica,
            "requested": ctx.gpus_per_replica * ctx.num_replicas,
            "ready": ctx.gpus_per_replica * replicas.num_serving,
        },
        "capacity": _capacity(capacity),
        "cache": _cache(download),
        "replicaStatuses": [
            _replica_status(ctx, replica)
            for replica in replicas.all[:MAX_REPLICA_STATUSES]
            if replica.pods
        ],
        "lastScaleTime": _last_scale_time(ctx),
    }
    if ctx.spec.router.enabled:
        endpoint = f"{ctx.name}.{ctx.namespace}:{ctx.spec.router.service.port}"
        status["router"] = {"readyReplicas": ready_routers(ctx), "endpoint": endpoint}
        status["url"] = service_url(ctx)
    return {name: value for name, value in status.items() if value not in (None, "", [])}


def refused_status(ctx_status: Mapping[str, Any], conditions: list[Json], generation: int) -> Json:
    """Return the status of a spec that is not carried out: what was known, and why not."""
    kept = [
        entry
        for entry in ctx_status.get("conditions") or ()
        if entry.get("type") not in {condition["type"] for condition in conditions}
    ]
    return {
        **ctx_status,
        "observedGeneration": generation,
        "phase": "Failed",
        "conditions": [*conditions, *kept],
    }


def replica_selector(ctx: Context) -> str:
    """Return the selector of the pods that stand for replicas: of a group, the first."""
    text = selector_text(ctx.name, ENGINE)
    return f"{text},{LEADER_LABEL}=0" if ctx.is_grouped else text


def _revisions(ctx: Context, replicas: Replicas) -> tuple[str, str]:
    """Return the revision that most replicas have, and the newest; groups have one each."""
    if ctx.is_grouped:
        return "", ""
    live = ctx.live("apps/v1", "StatefulSet", ctx.engine_name) or {}
    update = str((live.get("status") or {}).get("updateRevision", ""))
    counts = Counter(pod.revision for replica in replicas.all for pod in replica.pods)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0] == update, item[0]))
    return (ranked[0][0] if ranked else ""), update


def _capacity(capacity: Capacity) -> Json | None:
    if capacity.num_eligible is None:
        return None
    return {
        "eligibleNodes": capacity.num_eligible,
        "freeGpus": capacity.num_free_gpus,
        "message": capacity.condition.message,
    }


def _cache(download: Download) -> Json:
    fields = {
        "phase": download.phase,
        "bytes": download.num_bytes,
        "startedAt": download.started_at,
        "completedAt": download.completed_at,
        "message": download.message,
    }
    return {name: value for name, value in fields.items() if value}


def _replica_status(ctx: Context, replica: Replica) -> Json:
    leader = replica.pods[0]
    fields = {
        "name": leader.name,
        "ready": replica.is_serving,
        "revision": leader.revision,
        "node": leader.node,
        "nvlinkDomain": ctx.observed.nodes.label(leader.node, CLIQUE_LABEL),
        "message": replica.trouble,
    }
    return {name: value for name, value in fields.items() if value != ""}


def _last_scale_time(ctx: Context) -> str | None:
    """Return when the wanted number of replicas changed last, seen at the StatefulSet.

    Groups come and go one by one and have no such number.
    """
    previous: str | None = ctx.status.get("lastScaleTime")
    live = ctx.live("apps/v1", "StatefulSet", ctx.engine_name)
    if live is None or ctx.is_grouped:
        return previous
    is_scaling = live.get("spec", {}).get("replicas") != ctx.num_replicas
    return timestamp(ctx.observed.now) if is_scaling else previous
