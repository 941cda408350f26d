"""The plan of one deployment: the parts put together."""

from collections.abc import Mapping
from typing import Any

from quire_operator.api import Condition, DeploymentSpec, Problem, merge_conditions, parse_spec
from quire_operator.api.conditions import CONDITION_REASONS, FALSE, RECONCILIATION_PAUSED, TRUE
from quire_operator.plan.acceptance import accepted, refused, unsupported
from quire_operator.plan.autoscaling import autoscaler_condition
from quire_operator.plan.capacity_check import check_capacity
from quire_operator.plan.children import plan_children, template_hashes
from quire_operator.plan.context import Context
from quire_operator.plan.contract import Deletion, Manifest, Observed, Plan
from quire_operator.plan.download import Download, read_download
from quire_operator.plan.events import child_events, condition_events
from quire_operator.plan.labels import PAUSED_ANNOTATION
from quire_operator.plan.replicas import Replicas, read_replicas
from quire_operator.plan.rollout import (
    GROUP_RESTART_INTERVAL,
    group_restarts,
    has_unsettled_groups,
    partition,
    replacements,
)
from quire_operator.plan.settings import OperatorSettings
from quire_operator.plan.status import build_status, refused_status
from quire_operator.plan.summary import (
    Conditions,
    is_rollout_complete,
    phase,
    ready_condition,
    refused_conditions,
)
from quire_operator.plan.workload import (
    degraded_condition,
    progress,
    router_condition,
    workload_condition,
)

_ORDER = {type_: index for index, type_ in enumerate(CONDITION_REASONS)}


def plan(deployment: Manifest, observed: Observed, settings: OperatorSettings) -> Plan:
    """Decide what should exist, what should go, and what to tell the user.

    Args:
        deployment: the LLMDeployment as the server holds it, status included.
        observed: the cluster at this moment.
        settings: the administrator's defaults.
    """
    metadata = deployment.get("metadata") or {}
    status = deployment.get("status") or {}
    if "deletionTimestamp" in metadata:
        # Garbage collection takes the children; making one now would race with it.
        return Plan(status={**status, "phase": "Terminating"})
    spec = parse_spec(deployment)
    if isinstance(spec, Problem):
        return _refusal(deployment, spec, observed)
    ctx = _context(deployment, spec, observed, settings)
    if problem := unsupported(ctx):
        return _refusal(deployment, problem, observed)
    return _plan(ctx)


def _context(
    deployment: Manifest, spec: DeploymentSpec, observed: Observed, settings: OperatorSettings
) -> Context:
    metadata = deployment["metadata"]
    return Context(
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 1),
        annotations=metadata.get("annotations") or {},
        status=deployment.get("status") or {},
        spec=spec,
        observed=observed,
        settings=settings,
    )


def _plan(ctx: Context) -> Plan:
    hashes = template_hashes(ctx)
    replicas, download = read_replicas(ctx, hashes), read_download(ctx)
    children = plan_children(ctx, replicas, hashes, is_model_ready=download.is_done)
    capacity = check_capacity(ctx, replicas, download.config)
    judgement, deadline_in_s = _judge(ctx, replicas, download, capacity.condition)
    deletions = [*children.deletions, *_pods_to_delete(ctx, replicas)]
    news = condition_events(judgement.all, ctx.status.get("conditions") or ())
    status = build_status(
        ctx,
        replicas,
        judgement,
        phase=phase(ctx, replicas, judgement),
        capacity=capacity,
        download=download,
    )
    if _is_paused(ctx):
        return Plan(status=status, news=tuple(news))
    changes = child_events(children.objects, deletions, ctx.observed.children)
    return Plan(
        objects=children.objects,
        deletions=tuple(deletions),
        status=status,
        events=tuple(changes),
        news=tuple(news),
        requeue_after_s=_requeue_after_s(ctx, replicas, deadline_in_s),
    )


def _pods_to_delete(ctx: Context, replicas: Replicas) -> list[Deletion]:
    """A pod that is replaced for its revision need not be restarted for its group as well."""
    chosen = replacements(ctx, replicas)
    keys = {deletion.key for deletion in chosen}
    return [*chosen, *(d for d in group_restarts(ctx, replicas) if d.key not in keys)]


def _judge(
    ctx: Context, replicas: Replicas, download: Download, capacity: Condition
) -> tuple[Conditions, float | None]:
    """Return all conditions, and the seconds until time alone changes one of them."""
    is_complete = is_rollout_complete(ctx, replicas, partition(ctx))
    rollout = progress(ctx, replicas, is_complete=is_complete)
    parts = Conditions(
        (
            accepted(ctx),
            capacity,
            download.condition,
            workload_condition(ctx, replicas, is_model_ready=download.is_done),
            rollout.condition,
            router_condition(ctx),
            autoscaler_condition(ctx),
            _paused_condition(ctx),
            degraded_condition(ctx, replicas),
        )
    )
    ready = ready_condition(ctx, replicas, parts, is_complete=is_complete)
    ordered = sorted((ready, *parts.all), key=lambda condition: _ORDER[condition.type])
    return Conditions(tuple(ordered)), rollout.deadline_in_s


def _requeue_after_s(ctx: Context, replicas: Replicas, deadline_in_s: float | None) -> float | None:
    """Only time changes whether a deadline has passed; everything else comes as an event."""
    if has_unsettled_groups(ctx, replicas):
        return GROUP_RESTART_INTERVAL.total_seconds()
    return deadline_in_s


def _refusal(deployment: Manifest, problem: Problem, observed: Observed) -> Plan:
    """Leave everything as it is, and say why."""
    metadata, status = deployment.get("metadata") or {}, deployment.get("status") or {}
    conditions = refused_conditions(refused(problem))
    previous: list[Mapping[str, Any]] = status.get("conditions") or []
    generation = metadata.get("generation", 1)
    merged = merge_conditions(conditions, previous, generation=generation, now=observed.now)
    return Plan(
        status=refused_status(status, merged, generation),
        news=tuple(condition_events(conditions[1:], previous)),
    )


def _is_paused(ctx: Context) -> bool:
    return ctx.annotations.get(PAUSED_ANNOTATION) == "true"


def _paused_condition(ctx: Context) -> Condition:
    if _is_paused(ctx):
        text = (
            f"the annotation {PAUSED_ANNOTATION} is true: nothing is changed until it is removed "
            f"with `kubectl annotate llmd {ctx.name} {PAUSED_ANNOTATION}-`"
        )
        return Condition(RECONCILIATION_PAUSED, TRUE, "PausedByAnnotation", text)
    return Condition(RECONCILIATION_PAUSED, FALSE, "NotPaused", "changes are carried out")
