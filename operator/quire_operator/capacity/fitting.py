"""Which nodes can run a pod, and why the others cannot."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from quire_operator.capacity.demand import Demand
from quire_operator.capacity.footprint import Footprint
from quire_operator.capacity.memory import Workload
from quire_operator.capacity.nodes import NodeFacts


class Reason(Enum):
    """Reasons of the condition CapacityAvailable."""

    FITS = "Fits"
    NO_ELIGIBLE_NODES = "NoEligibleNodes"
    NO_NVLINK_NODES = "NoNVLinkNodes"
    NOT_ENOUGH_GPUS = "NotEnoughFreeGPUs"
    VRAM_TOO_SMALL = "VRAMTooSmall"
    UNKNOWN = "Unknown"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All nodes' verdicts and what they come to."""

    reason: Reason
    message: str
    """For the condition, with the next step; names nodes up to a bound, grouped by what they lack."""
    verdicts: tuple[Verdict, ...]
    eligible: tuple[str, ...]
    """Names of nodes that can run a pod."""
    num_slots: int
    """Pods that the eligible nodes can run at once, were they empty."""

    @property
    def fits(self) -> bool:
        return self.reason is Reason.FITS


def examine(
    demand: Demand,
    nodes: Iterable[NodeFacts],
    footprint: Footprint | None = None,
    workload: Workload | None = None,
) -> Fit:
    """Judge every node. Without a footprint memory is not judged, and the reason is Unknown
    where everything else fits.

    Nothing here knows what else runs in the cluster: a fit is of nodes as if they were empty.
    """
    raise NotImplementedError
