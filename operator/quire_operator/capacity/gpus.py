"""The GPUs that we know, under the names that GPU Feature Discovery gives them."""

from dataclasses import dataclass
from enum import Enum

from quire_operator.capacity.units import MIB


class Link(Enum):
    """How the GPUs of one node reach each other."""

    NONE = "PCIe only"
    BRIDGE = "NVLink bridge"
    SWITCH = "NVLink"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One product."""

    product: str
    """Value of the label nvidia.com/gpu.product."""
    alias: str
    """Short name for people: H200, A100-80GB."""
    memory_mib: int
    """Value of the label nvidia.com/gpu.memory."""
    link: Link = Link.NONE
    link_size: int = 1
    """Most GPUs of one node that NVLink joins."""
    compute_capability: tuple[int, int]

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB


GPUS: tuple[Gpu, ...] = ()


def gpu_of_product(product: str) -> Gpu | None:
    """Return the GPU of a node's product label; None if it is unknown.

    A "-SHARED" suffix (time slicing) is ignored; slices ("-MIG-1g.10gb") are no GPUs of ours.
    """
    raise NotImplementedError


def find_gpu(name: str) -> Gpu:
    """Return the GPU that a person names: "H200", "h100-80gb", or a product label.

    Raises:
        CapacityError: no such GPU is known; the message has the nearest and all aliases.
    """
    raise NotImplementedError


def nvlink_products(num_gpus: int) -> tuple[str, ...]:
    """Return the product labels whose nodes join `num_gpus` GPUs by NVLink, sorted."""
    raise NotImplementedError
