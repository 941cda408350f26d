"""The conditions of what runs: engines, rollout, router."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from quire_operator.api import Condition, parse_timestamp
from quire_operator.api.conditions import (
    DEGRADED,
    FALSE,
    PROGRESSING,
    ROUTER_READY,
    TRUE,
    WORKLOAD_AVAILABLE,
)
from quire_operator.plan.context import Context
from quire_operator.plan.labels import ROUTER
from quire_operator.plan.replicas import Replica, Replicas, read_pods
from quire_operator.plan.rollout import min_available, partition

MAX_NAMED = 3
"""Replicas that a message names."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The condition Progressing, and when it can change by time alone."""

    condition: Condition
    deadline_in_s: float | None = None


def workload_condition(ctx: Context, replicas: Replicas, *, is_model_ready: bool) -> Condition:
    """Judge whether enough replicas serve, of whatever revision."""
    if ctx.spec.suspend:
        return Condition(
            WORKLOAD_AVAILABLE,
            FALSE,
            "Suspended",
            "spec.suspend is true: set it to false to start the replicas again",
        )
    if ctx.num_replicas == 0:
        return Condition(
            WORKLOAD_AVAILABLE, FALSE, "ScaledToZero", f"spec.replicas is 0: {_wake_text(ctx)}"
        )
    counts = (
        f"{replicas.num_serving} of {ctx.num_replicas} replicas are ready, "
        f"{replicas.num_updated} of them have the newest revision"
        if replicas.num_serving
        else f"none of {ctx.num_replicas} replicas is ready"
    )
    if replicas.num_serving >= min_available(ctx):
        return Condition(WORKLOAD_AVAILABLE, TRUE, "MinimumReplicasAvailable", counts)
    if not is_model_ready and not replicas.num_existing:
        text = "engines start when the weights are there"
        return Condition(WORKLOAD_AVAILABLE, FALSE, "WaitingForModel", text)
    message = ". ".join([f"{counts}; {min_available(ctx)} are needed", *_troubles(replicas)])
    return Condition(WORKLOAD_AVAILABLE, FALSE, "MinimumReplicasUnavailable", message)


def progress(ctx: Context, replicas: Replicas, *, is_complete: bool) -> Progress:
    """Judge the rollout by what changed last: a pod that was made, or became ready."""
    if ctx.spec.suspend:
        text = "spec.suspend is true"
        return Progress(Condition(PROGRESSING, FALSE, "Suspended", text))
    if is_complete:
        held = f"; replicas below {partition(ctx)} keep theirs" if partition(ctx) else ""
        text = f"every replica has the newest revision and is ready{held}"
        return Progress(Condition(PROGRESSING, TRUE, "RolloutComplete", text))
    deadline_s = ctx.spec.rollout.progress_deadline_seconds
    since = replicas.progressed_at or _last_transition(ctx)
    waited_s = (ctx.observed.now - since).total_seconds() if since else 0.0
    counts = f"{replicas.num_updated} of {ctx.num_replicas} replicas have the newest revision"
    if waited_s > deadline_s:
        text = (
            f"{counts}, and nothing changed for more than {deadline_s} s, the "
            "spec.rollout.progressDeadlineSeconds. The rollout goes on when pods become ready; "
            "undo it by applying the previous spec"
        )
        text = ". ".join([text, *_troubles(replicas)])
        return Progress(Condition(PROGRESSING, FALSE, "ProgressDeadlineExceeded", text))
    text = f"{counts}, {replicas.num_serving} are ready"
    return Progress(Condition(PROGRESSING, TRUE, "NewRevision", text), deadline_s - waited_s + 1)


def router_condition(ctx: Context) -> Condition:
    """Judge the router's Deployment."""
    if not ctx.spec.router.enabled:
        text = "spec.router.enabled is false: clients speak gRPC to the engines"
        return Condition(ROUTER_READY, TRUE, "Disabled", text)
    if ctx.spec.suspend:
        return Condition(ROUTER_READY, FALSE, "Suspended", "spec.suspend is true")
    wanted, num_ready = ctx.spec.router.replicas, ready_routers(ctx)
    counts = f"{num_ready} of {wanted} router pods are ready"
    # Once all were up, one less is enough to serve: its node may be drained at the moment.
    needed = wanted - 1 if _was_true(ctx, ROUTER_READY) else wanted
    if num_ready and num_ready >= needed:
        return Condition(ROUTER_READY, TRUE, "Ready", counts)
    pods = read_pods(ctx.observed.pods, ROUTER)
    troubles = [f"{pod.name}: {text}" for pod in pods if (text := pod.failing or pod.unschedulable)]
    return Condition(ROUTER_READY, FALSE, "PodsNotReady", ". ".join([counts, *troubles[:1]]))


def degraded_condition(ctx: Context, replicas: Replicas) -> Condition:
    """Judge whether replicas are lost: those that merely start are not."""
    failing = [replica for replica in replicas.wanted if any(p.failing for p in replica.pods)]
    if failing:
        text = ". ".join(_troubles(replicas))
        return Condition(DEGRADED, TRUE, "PodsFailing", f"{text}. See `kubectl logs`")
    lost = [replica for replica in replicas.wanted if _is_lost(ctx, replica, replicas)]
    if lost:
        names = ", ".join(replica.name or str(replica.index) for replica in lost[:MAX_NAMED])
        text = f"{len(lost)} of {ctx.num_replicas} replicas do not serve any more: {names}"
        return Condition(DEGRADED, TRUE, "ReplicasUnavailable", text)
    return Condition(DEGRADED, FALSE, "AsExpected", "no replica is lost")


def ready_routers(ctx: Context) -> int:
    """Return the router pods that are ready, by the Deployment."""
    live = ctx.live("apps/v1", "Deployment", ctx.router_name) or {}
    status: Mapping[str, Any] = live.get("status") or {}
    return int(status.get("readyReplicas") or 0)


def _is_lost(ctx: Context, replica: Replica, replicas: Replicas) -> bool:
    if replica.is_serving or replica.stale_pods:
        return False
    if not replica.pods:
        # While none serves, the pods are about to be made for the first time.
        return replicas.num_serving > 0 and _was_ready(ctx)
    if any(pod.num_restarts or pod.is_failed or pod.is_terminating for pod in replica.pods):
        return True
    budget = timedelta(seconds=ctx.spec.probes.startup_seconds)
    created = min((pod.created_at for pod in replica.pods if pod.created_at), default=None)
    return created is not None and ctx.observed.now - created > budget


def _was_ready(ctx: Context) -> bool:
    """Tell whether as many replicas as are wanted have been ready before."""
    return int(ctx.status.get("readyReplicas") or 0) >= ctx.num_replicas


def _was_true(ctx: Context, type_: str) -> bool:
    conditions = ctx.status.get("conditions") or ()
    return any(entry.get("type") == type_ and entry.get("status") == TRUE for entry in conditions)


def _troubles(replicas: Replicas) -> list[str]:
    named = [f"{r.name}: {r.trouble}" for r in replicas.wanted if r.trouble]
    more = [f"{len(named) - MAX_NAMED} more have trouble"] if len(named) > MAX_NAMED else []
    return [*named[:MAX_NAMED], *more]


def _last_transition(ctx: Context) -> Any:
    for entry in ctx.status.get("conditions") or ():
        if entry.get("type") == PROGRESSING:
            return parse_timestamp(entry.get("lastTransitionTime"))
    return None


def _wake_text(ctx: Context) -> str:
    if ctx.spec.autoscaling and ctx.spec.autoscaling.min_replicas == 0:
        return "the next request starts one"
    return f"`kubectl scale llmd {ctx.name} --replicas=1` starts one"
