"""All children of a deployment, in the order in which they are applied, and what is left over."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quire_operator.plan.autoscaling import autoscaling_objects
from quire_operator.plan.context import Context
from quire_operator.plan.contract import Deletion, Manifest, ObjectKey, object_key
from quire_operator.plan.engines import (
    engine_service,
    engine_set,
    group_objects,
    set_template,
    template_hash,
)
from quire_operator.plan.gang import gang_objects
from quire_operator.plan.hashing import sealed
from quire_operator.plan.labels import TEMPLATE_HASH_ANNOTATION
from quire_operator.plan.optional import optional_objects
from quire_operator.plan.protection import disruption_budgets, network_policies
from quire_operator.plan.replicas import Replicas
from quire_operator.plan.rollout import held_groups, update_strategy
from quire_operator.plan.routers import router_objects
from quire_operator.plan.weights import kept_jobs, weights_objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """What should be, and what is and should go."""

    objects: tuple[Manifest, ...]
    deletions: tuple[Deletion, ...]


def template_hashes(ctx: Context) -> dict[str, str]:
    """Return the hash of each StatefulSet's pod template, by its name.

    Groups that keep an older template keep its hash.
    """
    if not ctx.is_grouped:
        return {ctx.engine_name: template_hash(set_template(ctx))}
    hashes = {
        ctx.group_name(index): template_hash(set_template(ctx, index))
        for index in range(ctx.num_replicas)
    }
    for index in held_groups(ctx, hashes):
        live = ctx.live("apps/v1", "StatefulSet", ctx.group_name(index))
        assert live is not None, "only what exists can be held"
        hashes[ctx.group_name(index)] = live["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    return hashes


def plan_children(
    ctx: Context, replicas: Replicas, hashes: Mapping[str, str], *, is_model_ready: bool
) -> Children:
    """Return every child, and the leftovers of earlier specs.

    Engines that wait for their weights are not made yet; those that run go on with the old ones.
    """
    may_start = is_model_ready or ctx.spec.suspend
    objects = [
        *weights_objects(ctx),
        engine_service(ctx),
        *network_policies(ctx),
        *disruption_budgets(ctx),
        *optional_objects(ctx),
        *gang_objects(ctx),
        *(_engines(ctx, replicas, hashes) if may_start else []),
        *router_objects(ctx),
        *autoscaling_objects(ctx),
    ]
    kept = {object_key(manifest) for manifest in objects}
    kept |= kept_jobs(ctx)
    kept |= _waiting(ctx, range(ctx.num_replicas) if not may_start else _held(ctx, hashes))
    return Children(
        objects=tuple(sealed(manifest) for manifest in objects),
        deletions=tuple(_leftovers(ctx, kept)),
    )


def _engines(ctx: Context, replicas: Replicas, hashes: Mapping[str, str]) -> list[Manifest]:
    if not ctx.is_grouped:
        strategy = update_strategy(ctx, replicas, hashes[ctx.engine_name])
        return [engine_set(ctx, strategy)]
    held = _held(ctx, hashes)
    return group_objects(ctx, [index for index in range(ctx.num_replicas) if index not in held])


def _held(ctx: Context, hashes: Mapping[str, str]) -> frozenset[int]:
    """Return the groups whose hash is not that of the newest template."""
    if not ctx.is_grouped:
        return frozenset()
    return frozenset(
        index
        for index in range(ctx.num_replicas)
        if hashes[ctx.group_name(index)] != template_hash(set_template(ctx, index))
    )


def _waiting(ctx: Context, indexes: Iterable[int]) -> set[ObjectKey]:
    """Return the engines' objects that stay as they are."""
    if not ctx.is_grouped:
        return {ctx.key("apps/v1", "StatefulSet", ctx.engine_name)}
    return {
        ctx.key(api_version, kind, ctx.group_name(index))
        for index in indexes
        for api_version, kind in (("apps/v1", "StatefulSet"), ("v1", "Service"))
    }


def _leftovers(ctx: Context, kept: set[ObjectKey]) -> Iterable[Deletion]:
    """Yield what we own and want no more. What others own, or nobody, is not ours to delete."""
    for key, live in sorted(ctx.observed.children.items(), key=lambda item: item[0]):
        metadata = live.get("metadata", {})
        is_ours = any(
            reference.get("controller") and reference.get("uid") == ctx.uid
            for reference in metadata.get("ownerReferences") or ()
        )
        if is_ours and key not in kept and "deletionTimestamp" not in metadata:
            yield Deletion(key, metadata.get("uid", ""), "pruned")
