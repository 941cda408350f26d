"""Which nodes can run a deployment's pods, why the others cannot, and what to do about it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from quire_operator.capacity.demand import Demand
from quire_operator.capacity.errors import CapacityError
from quire_operator.capacity.footprint import Footprint
from quire_operator.capacity.memory import MemoryPlan, Workload, plan_memory
from quire_operator.capacity.nodes import NodeFacts
from quire_operator.capacity.verdict import Reason, Verdict, judge

MAX_GROUPS = 5
"""Different reasons that a message lists."""
MAX_NAMES = 3
"""Nodes that it names for each."""

_NEXT_STEPS = {
    Reason.NO_ELIGIBLE_NODES: (
        "add a node with GPUs, or change placement.nodeSelector, tolerations or gpuProducts"
    ),
    Reason.NO_NVLINK_NODES: (
        "add such a node, lower parallelism.tensor, or set placement.nvlink.mode to Preferred"
    ),
    Reason.NOT_ENOUGH_GPUS: "add nodes, lower replicas, or lower parallelism.tensor",
    Reason.VRAM_TOO_SMALL: (
        "use larger GPUs, raise parallelism.tensor, lower model.maxModelLen, or quantize the model"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All nodes' verdicts and what they come to."""

    reason: Reason
    message: str
    """For the condition, with the next step; names some nodes, grouped by what they lack."""
    verdicts: tuple[Verdict, ...]
    eligible: tuple[str, ...]
    """Names of nodes that can run a pod."""
    num_slots: int
    """Replicas that the eligible nodes can run at once, were they empty."""

    @property
    def fits(self) -> bool:
        return self.reason is Reason.FITS


def examine(
    demand: Demand,
    nodes: Iterable[NodeFacts],
    footprint: Footprint | None = None,
    workload: Workload | None = None,
) -> Fit:
    """Judge every node, as if nothing else ran there.

    Without a footprint memory is not judged; the reason is Unknown where the rest fits. A
    footprint that cannot be shared as the workload says is reported in the same way as a node that
    is too small: this never raises on what a user wrote.
    """
    known = {node.name: node for node in nodes}
    try:
        memory_plan = _memory_plan(footprint, workload or Workload())
    except CapacityError as error:
        return Fit(
            reason=Reason.NO_ELIGIBLE_NODES,
            message=str(error),
            verdicts=(),
            eligible=(),
            num_slots=0,
        )
    verdicts = tuple(judge(demand, known[name], memory_plan) for name in sorted(known))
    eligible = [known[verdict.node] for verdict in verdicts if verdict.fits]
    num_slots = _num_slots(demand, eligible)
    reason = _reason(demand, verdicts, num_slots, is_memory_known=footprint is not None)
    return Fit(
        reason=reason,
        message=_message(demand, reason, verdicts, num_slots),
        verdicts=verdicts,
        eligible=tuple(node.name for node in eligible),
        num_slots=num_slots,
    )


def _memory_plan(
    footprint: Footprint | None, workload: Workload
) -> Callable[[int], MemoryPlan] | None:
    if footprint is None:
        return None
    plan_memory(footprint, workload, 0)  # what cannot be is told before any node is looked at

    @cache
    def plan(gpu_bytes: int) -> MemoryPlan:
        return plan_memory(footprint, workload, gpu_bytes)

    return plan


def _num_slots(demand: Demand, eligible: Sequence[NodeFacts]) -> int:
    if demand.num_gpus == 0:
        return demand.num_replicas if eligible else 0
    if demand.pods_per_replica == 1:
        return sum(node.num_gpus // demand.num_gpus for node in eligible)
    domains: Counter[str] = Counter()
    for node in eligible:
        domain = node.labels.get(demand.domain_label, "") if demand.spans_nodes else ""
        domains[domain] += node.num_gpus // demand.num_gpus
    return sum(num_pods // demand.pods_per_replica for num_pods in domains.values())


def _reason(
    demand: Demand, verdicts: Sequence[Verdict], num_slots: int, *, is_memory_known: bool
) -> Reason:
    if not any(verdict.fits for verdict in verdicts):
        order = list(Reason)
        found = [verdict.reason for verdict in verdicts]
        return max(found, key=order.index, default=Reason.NO_ELIGIBLE_NODES)
    if num_slots < demand.num_replicas:
        return Reason.NOT_ENOUGH_GPUS
    return Reason.FITS if is_memory_known or demand.num_gpus == 0 else Reason.UNKNOWN


def _message(demand: Demand, reason: Reason, verdicts: Sequence[Verdict], num_slots: int) -> str:
    num_fitting = sum(verdict.fits for verdict in verdicts)
    if not verdicts:
        return f"there is no node to look at; {_NEXT_STEPS[Reason.NO_ELIGIBLE_NODES]}"
    head = (
        f"{num_fitting} of {_count(len(verdicts), 'node')} can run it, with room for "
        f"{_count(num_slots, 'replica')} were they empty"
        if num_fitting
        else f"none of {_count(len(verdicts), 'node')} can run it"
    )
    if reason is Reason.UNKNOWN:
        head += "; the size of the model is not known, so memory was not checked"
    elif num_fitting and num_slots < demand.num_replicas:
        head += f", and {demand.num_replicas} are wanted"
    parts = [head, *_groups(verdicts)]
    if reason in _NEXT_STEPS:
        parts.append(f"next: {_NEXT_STEPS[reason]}")
    return ". ".join(parts)


def _groups(verdicts: Sequence[Verdict]) -> list[str]:
    """Return what keeps nodes away, the nearest to a fit first, nodes with one reason together."""
    order = list(Reason)
    groups: dict[tuple[Reason, str], list[str]] = {}
    for verdict in verdicts:
        if not verdict.fits:
            groups.setdefault((verdict.reason, verdict.message), []).append(verdict.node)
    ranked = sorted(groups.items(), key=lambda item: (-order.index(item[0][0]), item[1]))
    shown = [f"{_names(names)}: {message}" for (_, message), names in ranked[:MAX_GROUPS]]
    num_rest = sum(len(names) for _, names in ranked[MAX_GROUPS:])
    return [*shown, f"{_count(num_rest, 'more node')} for other reasons"] if num_rest else shown


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    return f"{shown} and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
