"""How a new revision reaches running replicas, without a surge and within the budget.

A StatefulSet's own rolling update goes through its pods from the last to the first and counts
nothing but the pod that it works on. So it is used only to hold pods below a partition, which
nothing else can. Otherwise, while pods of an old revision exist, the strategy is OnDelete and we
choose:

    1. replicas that do not serve anyway, all of them: they cost nothing. One whose node is out of
       reach is not among them: when only the control plane has lost sight of the nodes, all of
       them may be serving
    2. serving ones, the last first, as many as maxUnavailable leaves

Everything is decided from revisions and readiness as the cluster shows them, so that an operator
that restarts in the middle goes on where it was.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Deletion
from quire_operator.plan.labels import TEMPLATE_HASH_ANNOTATION
from quire_operator.plan.pods import Pod
from quire_operator.plan.replicas import Replica, Replicas

GROUP_RESTART_INTERVAL = timedelta(seconds=60)
"""A group younger than this is left alone, so that one that cannot start is not restarted in a
loop."""

Json = dict[str, Any]


def max_unavailable(wanted: int | str, total: int) -> int:
    """Return how many replicas may be away; percentages are rounded down, to 1 at least."""
    text = str(wanted)
    number = total * int(text[:-1]) // 100 if text.endswith("%") else int(text)
    return max(1, number)


def min_available(ctx: Context) -> int:
    """Return how many replicas must serve for the deployment to count as available."""
    total = ctx.num_replicas
    return max(min(1, total), total - max_unavailable(ctx.spec.rollout.max_unavailable, total))


def partition(ctx: Context) -> int:
    """Return the index below which replicas keep their revision."""
    return 0 if ctx.spec.rollout.strategy == "Recreate" else ctx.spec.rollout.partition


def update_strategy(ctx: Context, replicas: Replicas, template_hash: str) -> Json:
    """Return the updateStrategy of the StatefulSet of single-pod replicas."""
    at_rest: Json = {"type": "RollingUpdate", "rollingUpdate": {"partition": partition(ctx)}}
    live = ctx.live("apps/v1", "StatefulSet", ctx.engine_name)
    if live is None or partition(ctx) > 0:
        return at_rest
    on_delete: Json = {"type": "OnDelete"}
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(TEMPLATE_HASH_ANNOTATION) != template_hash:
        return on_delete
    if not replicas.is_observed:
        return on_delete if _strategy_of(live)[0] == "OnDelete" else at_rest
    return on_delete if replicas.has_stale(0) else at_rest


def replacements(ctx: Context, replicas: Replicas) -> list[Deletion]:
    """Return the pods of old revisions to delete at this moment."""
    if not replicas.is_observed:
        return []
    stale = [
        replica
        for replica in replicas.wanted
        if replica.index >= partition(ctx) and replica.stale_pods and _is_replaceable(ctx, replica)
    ]
    if ctx.spec.rollout.strategy == "Recreate":
        chosen = stale
    else:
        away = sum(not replica.is_serving for replica in replicas.wanted)
        most = max_unavailable(ctx.spec.rollout.max_unavailable, len(replicas.wanted))
        serving = sorted((r for r in stale if r.is_serving), key=lambda r: -r.index)
        broken = [r for r in stale if not r.is_serving and not r.is_cut_off]
        chosen = broken + serving[: max(0, most - away)]
    return _deletions(ctx, chosen, "new revision")


def group_restarts(ctx: Context, replicas: Replicas) -> list[Deletion]:
    """Return the pods of groups of which a member was lost: the others wait for it in vain."""
    if not ctx.is_grouped:
        return []
    broken = [replica for replica in replicas.wanted if _is_broken(replica)]
    settled = [replica for replica in broken if _is_settled(ctx, replica.pods)]
    return _deletions(ctx, settled, "group restart")


def has_unsettled_groups(ctx: Context, replicas: Replicas) -> bool:
    """Tell whether a broken group is too young to be restarted yet."""
    return ctx.is_grouped and any(
        _is_broken(replica) and not _is_settled(ctx, replica.pods) for replica in replicas.wanted
    )


def held_groups(ctx: Context, hashes: Mapping[str, str]) -> frozenset[int]:
    """Return the groups below the partition that keep a StatefulSet of an older template."""
    if not ctx.is_grouped:
        return frozenset()
    indexes = range(min(partition(ctx), ctx.num_replicas))
    return frozenset(index for index in indexes if _is_older(ctx, ctx.group_name(index), hashes))


def _is_older(ctx: Context, name: str, hashes: Mapping[str, str]) -> bool:
    live = ctx.live("apps/v1", "StatefulSet", name)
    if live is None:
        return False
    annotations = live["metadata"].get("annotations") or {}
    return annotations.get(TEMPLATE_HASH_ANNOTATION) != hashes[name]


def _is_replaceable(ctx: Context, replica: Replica) -> bool:
    """Tell whether a pod that is deleted comes back with the newest revision."""
    if ctx.is_grouped:
        return True
    live = ctx.live("apps/v1", "StatefulSet", ctx.engine_name)
    kind, held = _strategy_of(live or {})
    return kind == "OnDelete" or replica.index >= held


def _strategy_of(stateful_set: Mapping[str, Any]) -> tuple[str, int]:
    strategy = stateful_set.get("spec", {}).get("updateStrategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    return strategy.get("type", "RollingUpdate"), rolling.get("partition") or 0


def _is_broken(replica: Replica) -> bool:
    if any(pod.num_restarts or pod.is_failed for pod in replica.pods):
        return True
    leader = replica.pods[0] if replica.pods else None
    if leader is None or not leader.is_ready or leader.ready_at is None:
        return False
    # A member that is younger than the leader's readiness replaced one that the leader knew.
    return any(pod.created_at and pod.created_at > leader.ready_at for pod in replica.pods)


def _is_settled(ctx: Context, pods: Iterable[Pod]) -> bool:
    youngest = max((pod.created_at for pod in pods if pod.created_at), default=None)
    return youngest is None or ctx.observed.now - youngest >= GROUP_RESTART_INTERVAL


def _deletions(ctx: Context, replicas: Iterable[Replica], reason: str) -> list[Deletion]:
    """Groups go as a whole: two revisions cannot work together."""
    return [
        Deletion(ctx.key("v1", "Pod", pod.name), pod.uid, reason)
        for replica in replicas
        for pod in replica.pods
        if not pod.is_terminating
    ]
