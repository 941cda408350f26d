"""The GPUs that we know, under the names that GPU Feature Discovery gives them.

A label is the device's name with dashes for blanks. No label tells whether NVLink joins the GPUs
of a node, so that is known here, by product.
"""

import difflib
from dataclasses import dataclass
from enum import Enum

from quire_operator.capacity.errors import CapacityError
from quire_operator.capacity.units import MIB

SHARED_SUFFIX = "-SHARED"
"""What GPU Feature Discovery appends to products of which several pods get the same GPU."""


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

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB


def _sxm(product: str, alias: str, memory_mib: int, link_size: int = 8) -> Gpu:
    return Gpu(
        product=product, alias=alias, memory_mib=memory_mib, link=Link.SWITCH, link_size=link_size
    )


def _bridged(product: str, alias: str, memory_mib: int, link_size: int) -> Gpu:
    return Gpu(
        product=product, alias=alias, memory_mib=memory_mib, link=Link.BRIDGE, link_size=link_size
    )


def _pcie(product: str, alias: str, memory_mib: int) -> Gpu:
    return Gpu(product=product, alias=alias, memory_mib=memory_mib)


GPUS: tuple[Gpu, ...] = (
    # A tray of a GB200 or GB300 rack has four; the rack's other trays are its clique.
    _sxm("NVIDIA-GB300", "GB300", 284208, 4),
    _sxm("NVIDIA-GB200", "GB200", 189471, 4),
    _sxm("NVIDIA-B300-SXM6-AC", "B300", 275040),
    _sxm("NVIDIA-B200", "B200", 183359),
    _sxm("NVIDIA-H200", "H200", 143771),
    _bridged("NVIDIA-H200-NVL", "H200-NVL", 143771, 4),
    _pcie("NVIDIA-GH200-480GB", "GH200", 97871),
    _sxm("NVIDIA-H100-80GB-HBM3", "H100", 81559),
    _bridged("NVIDIA-H100-NVL", "H100-NVL", 95830, 2),
    _pcie("NVIDIA-H100-PCIe", "H100-PCIe", 81559),
    _sxm("NVIDIA-H800", "H800", 81559),
    _sxm("NVIDIA-H20", "H20", 97871),
    _sxm("NVIDIA-A100-SXM4-80GB", "A100-80GB", 81920),
    _sxm("NVIDIA-A100-SXM4-40GB", "A100-40GB", 40960),
    _sxm("NVIDIA-A800-SXM4-80GB", "A800", 81920),
    _pcie("NVIDIA-A100-80GB-PCIe", "A100-80GB-PCIe", 81920),
    _pcie("NVIDIA-A100-PCIE-40GB", "A100-40GB-PCIe", 40960),
    _pcie("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000", 97887),
    _pcie("NVIDIA-L40S", "L40S", 46068),
    _pcie("NVIDIA-L40", "L40", 46068),
    _pcie("NVIDIA-L4", "L4", 23034),
    _pcie("NVIDIA-A40", "A40", 46068),
    _pcie("NVIDIA-A30", "A30", 24576),
    _pcie("NVIDIA-A10", "A10", 23028),
    _pcie("NVIDIA-A10G", "A10G", 23028),
    _pcie("NVIDIA-RTX-6000-Ada-Generation", "RTX-6000-Ada", 49140),
    _pcie("NVIDIA-RTX-A6000", "A6000", 49140),
    _pcie("NVIDIA-GeForce-RTX-5090", "RTX-5090", 32607),
    _pcie("NVIDIA-GeForce-RTX-4090", "RTX-4090", 24564),
    _pcie("NVIDIA-GeForce-RTX-3090", "RTX-3090", 24576),
    _sxm("Tesla-V100-SXM2-32GB", "V100-32GB", 32768),
    _sxm("Tesla-V100-SXM2-16GB", "V100-16GB", 16384),
    _pcie("Tesla-T4", "T4", 15360),
)


def gpu_of_product(product: str) -> Gpu | None:
    """Return the GPU of a node's product label; None if it is unknown.

    A "-SHARED" suffix (time slicing) is ignored; slices ("-MIG-1g.10gb") are no GPUs of ours.
    """
    whole = product.removesuffix(SHARED_SUFFIX)
    return next((gpu for gpu in GPUS if gpu.product == whole), None)


def find_gpu(name: str) -> Gpu:
    """Return the GPU that a person names: "H200", "h100-80gb", or a product label.

    Raises:
        CapacityError: no such GPU is known; the message has the nearest and all aliases.
    """
    wanted = _plain(name)
    names = {_plain(text): gpu for gpu in GPUS for text in (gpu.product, gpu.alias)}
    names |= {_plain(text): names[_plain(alias)] for text, alias in _OTHER_NAMES.items()}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {names[near[0]].alias}? " if near else ""
    known = ", ".join(gpu.alias for gpu in GPUS)
    raise CapacityError(f"GPU {name!r} is not known; {hint}known are {known}")


_OTHER_NAMES = {
    "A100": "A100-80GB",
    "A100-SXM": "A100-80GB",
    "H100-80GB": "H100",
    "H100-SXM": "H100",
    "H200-141GB": "H200",
    "H200-SXM": "H200",
    "B200-SXM": "B200",
    "V100": "V100-32GB",
    "4090": "RTX-4090",
    "3090": "RTX-3090",
    "5090": "RTX-5090",
}


def _plain(name: str) -> str:
    text = "".join(letter for letter in name.lower() if letter.isalnum())
    return text.removeprefix("nvidia").removeprefix("tesla").removeprefix("geforce")


def nvlink_products(num_gpus: int) -> tuple[str, ...]:
    """Return the product labels whose nodes join `num_gpus` GPUs by NVLink, sorted."""
    return tuple(sorted(gpu.product for gpu in GPUS if gpu.link_size >= num_gpus > 1))
