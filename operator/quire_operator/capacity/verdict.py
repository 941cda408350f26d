"""One node's verdict on a demand: the first thing that keeps a pod away, in words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from quire_operator.capacity.demand import Demand
from quire_operator.capacity.gpus import Link
from quire_operator.capacity.memory import MemoryPlan
from quire_operator.capacity.nodes import NodeFacts
from quire_operator.capacity.units import gib

BLOCKING_EFFECTS = ("NoSchedule", "NoExecute")


class Reason(Enum):
    """Reasons of the condition CapacityAvailable, those nearer to a fit last."""

    UNKNOWN = "Unknown"
    NO_ELIGIBLE_NODES = "NoEligibleNodes"
    NO_NVLINK_NODES = "NoNVLinkNodes"
    NOT_ENOUGH_GPUS = "NotEnoughFreeGPUs"
    VRAM_TOO_SMALL = "VRAMTooSmall"
    FITS = "Fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One node's."""

    node: str
    reason: Reason
    message: str
    """Without the node's name: "needs 74.2 GiB on each of 2 GPUs, has 2x NVIDIA-A10 with 22.5 GiB;
    short 51.7 GiB"."""

    @property
    def fits(self) -> bool:
        return self.reason is Reason.FITS


Problem = tuple[Reason, str]


def judge(
    demand: Demand, node: NodeFacts, memory_plan: Callable[[int], MemoryPlan] | None
) -> Verdict:
    """Return the first problem of a node, or that it fits.

    `memory_plan` divides a GPU of so many bytes; None: memory is not judged.
    """
    for reason, message in _problems(demand, node):
        return Verdict(node=node.name, reason=reason, message=message)
    if memory_plan is not None and demand.num_gpus and node.gpu_bytes:
        plan = memory_plan(node.gpu_bytes)
        if not plan.fits:
            message = _too_small(demand, node, plan.needed_gpu_bytes)
            return Verdict(node=node.name, reason=Reason.VRAM_TOO_SMALL, message=message)
    return Verdict(node=node.name, reason=Reason.FITS, message=_what_fits(demand, node))


def _problems(demand: Demand, node: NodeFacts) -> Iterator[Problem]:
    yield from _scheduling_problems(demand, node)
    if demand.num_gpus == 0:
        return
    yield from _product_problems(demand, node)
    if node.num_gpus < demand.num_gpus:
        yield Reason.NOT_ENOUGH_GPUS, f"has {node.num_gpus} of {demand.num_gpus} {demand.resource}"
    if demand.needs_nvlink:
        yield from _nvlink_problems(demand, node)
    if node.gpu_bytes < demand.min_gpu_bytes:
        yield Reason.VRAM_TOO_SMALL, _too_small(demand, node, demand.min_gpu_bytes)


def _scheduling_problems(demand: Demand, node: NodeFacts) -> Iterator[Problem]:
    if not node.is_ready:
        yield Reason.NO_ELIGIBLE_NODES, "is not Ready"
    if node.is_cordoned:
        yield Reason.NO_ELIGIBLE_NODES, "is cordoned"
    for key, value in demand.node_selector.items():
        if node.labels.get(key) != value:
            yield (
                Reason.NO_ELIGIBLE_NODES,
                f"lacks the label {key}={value} of placement.nodeSelector",
            )
    for taint in node.taints:
        is_tolerated = any(toleration.tolerates(taint) for toleration in demand.tolerations)
        if taint.effect in BLOCKING_EFFECTS and not is_tolerated:
            yield (
                Reason.NO_ELIGIBLE_NODES,
                f"has the taint {taint}, which placement.tolerations does not tolerate",
            )


def _product_problems(demand: Demand, node: NodeFacts) -> Iterator[Problem]:
    if node.num_gpus == 0 and not node.product:
        yield Reason.NO_ELIGIBLE_NODES, f"has no {demand.resource}"
    if node.is_mig:
        yield Reason.NO_ELIGIBLE_NODES, f"its GPUs are MIG slices ({node.product})"
    if demand.products and node.product not in demand.products:
        wanted = ", ".join(demand.products)
        yield Reason.NO_ELIGIBLE_NODES, f"has {node.product or 'GPUs without label'}, not {wanted}"
    if node.is_shared and demand.num_gpus > 1:
        yield (
            Reason.NO_ELIGIBLE_NODES,
            f"its GPUs are time-sliced, so {demand.num_gpus} of them may be one",
        )


def _nvlink_problems(demand: Demand, node: NodeFacts) -> Iterator[Problem]:
    key, value = demand.nvlink_label
    is_labelled = node.labels.get(key) == value
    if demand.link_size > 1 and not is_labelled:
        yield from _link_problems(demand, node)
    if demand.spans_nodes and not node.labels.get(demand.domain_label):
        yield (
            Reason.NO_NVLINK_NODES,
            f"is in no multi-node NVLink domain (label {demand.domain_label}), and a group of "
            f"{demand.tensor_parallel_size} GPUs spans nodes with {demand.num_gpus} each",
        )


def _link_problems(demand: Demand, node: NodeFacts) -> Iterator[Problem]:
    key, value = demand.nvlink_label
    if node.gpu is None:
        yield (
            Reason.NO_NVLINK_NODES,
            f"has {node.product or 'GPUs without label'}, of which it is not known whether NVLink "
            f"joins them; if it does, label the node {key}={value}",
        )
    elif node.gpu.link is Link.NONE:
        yield Reason.NO_NVLINK_NODES, f"has {node.product} without NVLink"
    elif node.gpu.link_size < demand.link_size:
        yield (
            Reason.NO_NVLINK_NODES,
            f"has {node.product}, of which NVLink joins {node.gpu.link_size}, not "
            f"{demand.link_size}",
        )


def _too_small(demand: Demand, node: NodeFacts, needed_bytes: int) -> str:
    each = "on its GPU" if demand.num_gpus == 1 else f"on each of {demand.num_gpus} GPUs"
    return (
        f"needs {gib(needed_bytes)} {each}, has {_gpus(node)}; "
        f"short {gib(needed_bytes - node.gpu_bytes)}"
    )


def _what_fits(demand: Demand, node: NodeFacts) -> str:
    if demand.num_gpus == 0:
        return "fits"
    num_pods = node.num_gpus // demand.num_gpus
    return f"has {_gpus(node)}: room for {num_pods} {'pod' if num_pods == 1 else 'pods'}"


def _gpus(node: NodeFacts) -> str:
    memory = f" with {gib(node.gpu_bytes)}" if node.gpu_bytes else " of unknown memory"
    return f"{node.num_gpus}x {node.product or 'GPU'}{memory}"
