"""Whether the nodes can run it: CapacityAvailable. It warns, and overrides nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api import Condition
from quire_operator.api.conditions import CAPACITY_AVAILABLE, FALSE, TRUE, UNKNOWN, Status
from quire_operator.capacity import (
    CapacityError,
    Fit,
    Footprint,
    Reason,
    Workload,
    footprint_of_config,
    footprint_of_name,
    footprint_of_sizes,
    parse_bytes,
)
from quire_operator.plan.context import Context
from quire_operator.plan.labels import MODEL_CONFIG_ANNOTATION, SKIP_CAPACITY_ANNOTATION
from quire_operator.plan.placement import demand
from quire_operator.plan.replicas import Replicas

DEFAULT_MAX_POSITION = 32_768
"""Longest request that is planned for where sizes are given without a maxModelLen."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """A condition, and the numbers beside it."""

    condition: Condition
    num_eligible: int | None = None
    num_free_gpus: int | None = None


def check_capacity(
    ctx: Context, replicas: Replicas, config: Mapping[str, Any] | None = None
) -> Capacity:
    """Judge nodes by hardware first, then by what the scheduler says of the pods.

    `config` is the model's config.json, as far as somebody has seen it.
    """
    if ctx.annotations.get(SKIP_CAPACITY_ANNOTATION) == "true":
        return _unknown(f"not checked: the annotation {SKIP_CAPACITY_ANNOTATION} says so")
    stuck = _unschedulable(replicas)
    if ctx.gpus_per_pod == 0:
        if stuck:
            return Capacity(_condition(FALSE, Reason.NO_ELIGIBLE_NODES, _stuck_text(stuck)))
        return Capacity(_condition(TRUE, Reason.FITS, "it runs on CPUs and needs no GPU"))
    if ctx.spec.resources.dra is not None:
        if stuck:
            return Capacity(_condition(FALSE, Reason.NOT_ENOUGH_GPUS, _stuck_text(stuck)))
        return _unknown("GPUs are claimed by spec.resources.dra: the scheduler alone knows them")
    if not ctx.observed.nodes:
        return _unknown("the operator sees no nodes, so nothing was checked")
    return _checked(ctx, replicas, stuck, config)


def _checked(
    ctx: Context, replicas: Replicas, stuck: str, config: Mapping[str, Any] | None
) -> Capacity:
    fleet = ctx.observed.nodes
    fit = fleet.examine(demand(ctx), footprint(ctx, config), workload(ctx))
    fitting = set(fit.eligible)
    nodes = fleet.facts(ctx.gpu_resource)
    total = sum(node.num_gpus for node in nodes if node.name in fitting)
    pods = [pod for replica in replicas.all for pod in replica.pods]
    used = sum(ctx.gpus_per_pod for pod in pods if pod.node in fitting)
    return Capacity(_judged(fit, stuck), len(fitting), max(0, total - used))


def footprint(ctx: Context, reported: Mapping[str, Any] | None) -> Footprint | None:
    """Return the model's size: as stated, from its config.json, or as its name says.

    `reported` is the config.json that the weights' job found.
    """
    name, dtype = ctx.source.model_name, ctx.spec.model.dtype
    kv_cache_dtype = ctx.spec.engine.kv_cache_dtype
    try:
        if sizing := ctx.spec.model.sizing:
            return footprint_of_sizes(
                weight_bytes=parse_bytes(sizing.weights),
                kv_bytes_per_token=sizing.kv_bytes_per_token,
                max_position=ctx.spec.model.max_model_len or DEFAULT_MAX_POSITION,
                name=name,
            )
        if config := _annotated_config(ctx) or reported:
            return footprint_of_config(
                config, name=name, dtype=dtype, kv_cache_dtype=kv_cache_dtype
            )
    except CapacityError:  # numbers that make no sense are as good as none
        pass
    return footprint_of_name(name, dtype=dtype, kv_cache_dtype=kv_cache_dtype)


def _annotated_config(ctx: Context) -> Mapping[str, Any] | None:
    try:
        config = json.loads(ctx.annotations.get(MODEL_CONFIG_ANNOTATION, ""))
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def workload(ctx: Context) -> Workload:
    """Return how the model is run."""
    engine, parallelism = ctx.spec.engine, ctx.spec.parallelism
    return Workload(
        tensor_parallel_size=parallelism.tensor,
        pipeline_parallel_size=parallelism.pipeline,
        gpu_memory_utilization=engine.gpu_memory_percent / 100,
        max_model_len=ctx.spec.model.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_batched_tokens,
        block_size=engine.block_size,
    )


def _judged(fit: Fit, stuck: str) -> Condition:
    if stuck and fit.reason in (Reason.FITS, Reason.UNKNOWN):
        # The hardware would do; somebody else has it.
        return _condition(FALSE, Reason.NOT_ENOUGH_GPUS, f"{fit.message}. {_stuck_text(stuck)}")
    status: Status = FALSE
    if fit.reason in (Reason.FITS, Reason.UNKNOWN):
        status = TRUE if fit.reason is Reason.FITS else UNKNOWN
    return _condition(status, fit.reason, fit.message)


def _unschedulable(replicas: Replicas) -> str:
    for replica in replicas.wanted:
        for pod in replica.pods:
            if pod.unschedulable:
                return f"pod {pod.name}: {pod.unschedulable}"
    return ""


def _stuck_text(stuck: str) -> str:
    return f"The scheduler says of {stuck} Next: free such a node, add one, or lower replicas"


def _condition(status: Status, reason: Reason, message: str) -> Condition:
    return Condition(CAPACITY_AVAILABLE, status, reason.value, message)


def _unknown(message: str) -> Capacity:
    return Capacity(Condition(CAPACITY_AVAILABLE, UNKNOWN, Reason.UNKNOWN.value, message))
