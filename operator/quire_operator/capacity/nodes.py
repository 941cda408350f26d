"""What a Node manifest says of its GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from quire_operator.capacity.gpus import SHARED_SUFFIX, Gpu, gpu_of_product
from quire_operator.capacity.units import MIB

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"
MEMORY_LABEL = "nvidia.com/gpu.memory"
CLIQUE_LABEL = "nvidia.com/gpu.clique"
SHARING_LABEL = "nvidia.com/gpu.sharing-strategy"
SLICES_LABEL = "nvidia.com/gpu.slices.gi"
"""Only on nodes whose nvidia.com/gpu are MIG slices. mig.strategy=single says nothing: the GPU
operator sets it on whole GPUs too."""
MIG_IN_PRODUCT = "-MIG-"
NO_SHARING = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint as in spec.taints."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"

    def __str__(self) -> str:
        return (
            f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"
        )


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
    num_labelled_gpus: int
    """GPUs that the node has by its label nvidia.com/gpu.count, else the allocatable ones."""
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
        metadata, spec, status = (node.get(part) or {} for part in ("metadata", "spec", "status"))
        labels: Mapping[str, str] = metadata.get("labels") or {}
        product = labels.get(PRODUCT_LABEL, "")
        gpu, memory_mib = gpu_of_product(product), _number(labels.get(MEMORY_LABEL))
        resources = status.get("allocatable") or status.get("capacity") or {}
        num_gpus = _number(resources.get(resource))
        return cls(
            name=metadata.get("name", ""),
            product=product,
            gpu=gpu,
            num_gpus=num_gpus,
            num_labelled_gpus=_number(labels.get(COUNT_LABEL)) or num_gpus,
            gpu_bytes=memory_mib * MIB or (gpu.memory_bytes if gpu else 0),
            is_mig=MIG_IN_PRODUCT in product or SLICES_LABEL in labels,
            is_shared=_is_shared(product, labels),
            clique=labels.get(CLIQUE_LABEL, ""),
            labels=labels,
            taints=tuple(_taint(taint) for taint in spec.get("taints") or ()),
            is_ready=_is_ready(status),
            is_cordoned=bool(spec.get("unschedulable", False)),
        )


def _is_shared(product: str, labels: Mapping[str, str]) -> bool:
    return product.endswith(SHARED_SUFFIX) or labels.get(SHARING_LABEL, "") not in ("", NO_SHARING)


def _is_ready(status: Mapping[str, Any]) -> bool:
    conditions = status.get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _taint(taint: Mapping[str, Any]) -> Taint:
    return Taint(
        key=taint.get("key", ""), value=taint.get("value") or "", effect=taint.get("effect", "")
    )


def _number(text: Any) -> int:
    return int(text) if str(text or "").isdecimal() else 0
