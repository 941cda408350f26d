"""What a Node manifest says of its GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from quire_operator.capacity.gpus import Gpu

GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint as in spec.taints."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node, as far as GPUs and placement go."""

    name: str
    product: str
    """Label nvidia.com/gpu.product, or ""."""
    gpu: Gpu | None
    """What the product is, if we know it."""
    num_gpus: int
    """Allocatable GPUs; unhealthy ones are not among them."""
    gpu_bytes: int
    """Memory of one GPU by its label, else by the product; 0: unknown."""
    is_mig: bool
    """Its GPUs are cut into slices."""
    is_shared: bool
    """Its GPUs are time-sliced: several pods get the same one."""
    clique: str
    """Label nvidia.com/gpu.clique: nodes of one multi-node NVLink domain; or ""."""
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    is_ready: bool
    is_cordoned: bool

    @classmethod
    def from_manifest(cls, node: Mapping[str, Any], *, resource: str = GPU_RESOURCE) -> Self:
        """Read a Node as the API server returns it. Anything missing counts as absent."""
        raise NotImplementedError
