"""The conditions in one word: Ready for programs, phase for people."""

from dataclasses import dataclass

from quire_operator.api import Condition
from quire_operator.api.conditions import (
    ACCEPTED,
    CAPACITY_AVAILABLE,
    FALSE,
    MODEL_CACHED,
    PROGRESSING,
    READY,
    ROUTER_READY,
    TRUE,
    WORKLOAD_AVAILABLE,
)
from quire_operator.plan.context import Context
from quire_operator.plan.replicas import Replicas
from quire_operator.plan.rollout import min_available


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one plan, by type."""

    all: tuple[Condition, ...]

    def __getitem__(self, type_: str) -> Condition:
        return next(condition for condition in self.all if condition.type == type_)


def ready_condition(
    ctx: Context, replicas: Replicas, conditions: Conditions, *, is_complete: bool
) -> Condition:
    """Judge whether what the spec says now is served. Old replicas alone do not count.

    The first reason that people can act on wins: missing GPUs explain pods that are not ready, not
    the other way round.
    """
    workload, router = conditions[WORKLOAD_AVAILABLE], conditions[ROUTER_READY]
    if workload.reason == "ScaledToZero" and _wakes(ctx) and router.is_true:
        return Condition(READY, TRUE, "ScaledToZero", workload.message)
    if workload.reason in ("Suspended", "ScaledToZero"):
        return Condition(READY, FALSE, workload.reason, workload.message)
    if workload.is_true and is_complete and router.is_true:
        return Condition(READY, TRUE, "Ready", workload.message)
    accepted, model = conditions[ACCEPTED], conditions[MODEL_CACHED]
    if accepted.reason == "ReferenceNotFound":
        return Condition(READY, FALSE, "ReferenceNotFound", accepted.message)
    if not model.is_true:
        return Condition(READY, FALSE, "ModelDownloading", model.message)
    capacity = conditions[CAPACITY_AVAILABLE]
    if capacity.status == FALSE and replicas.num_serving < ctx.num_replicas:
        return Condition(READY, FALSE, "InsufficientCapacity", capacity.message)
    if not is_complete and workload.is_true:
        return Condition(READY, FALSE, "Updating", conditions[PROGRESSING].message)
    if not workload.is_true:
        return Condition(READY, FALSE, "PodsNotReady", workload.message)
    return Condition(READY, FALSE, "RouterNotReady", router.message)


def is_rollout_complete(ctx: Context, replicas: Replicas, held: int) -> bool:
    """Tell whether every replica has its revision and has been ready with it."""
    if replicas.has_stale(held):
        return False
    needed = min_available(ctx) if replicas.was_complete else ctx.num_replicas
    return replicas.num_available(held) >= needed


def phase(ctx: Context, replicas: Replicas, conditions: Conditions) -> str:
    """Return one word for people."""
    if ctx.spec.suspend:
        return "Suspended"
    model = conditions[MODEL_CACHED]
    if not model.is_true and not replicas.num_serving:
        return "Downloading" if model.reason == "Downloading" else "Failed"
    ready = conditions[READY]
    if ctx.num_replicas == 0:
        return "Ready" if ready.is_true else "Pending"
    if ready.is_true:
        return "Ready" if replicas.num_serving == ctx.num_replicas else "Degraded"
    if ready.reason == "Updating" or _has_stale(replicas):
        return "Degraded" if conditions[PROGRESSING].status == FALSE else "Updating"
    return _starting_phase(replicas)


def _starting_phase(replicas: Replicas) -> str:
    pods = [pod for replica in replicas.wanted for pod in replica.pods]
    if not pods:
        return "Pending"
    if any(pod.failing for pod in pods):
        return "Failed" if not replicas.num_serving else "Degraded"
    if any(pod.unschedulable for pod in pods):
        return "Scheduling"
    return "Loading"


def refused_conditions(problem: Condition) -> tuple[Condition, ...]:
    """Return the conditions of a spec that cannot be carried out."""
    return (Condition(READY, FALSE, "SpecInvalid", problem.message), problem)


def _has_stale(replicas: Replicas) -> bool:
    return any(replica.stale_pods for replica in replicas.wanted)


def _wakes(ctx: Context) -> bool:
    return ctx.spec.autoscaling is not None and ctx.spec.autoscaling.min_replicas == 0
