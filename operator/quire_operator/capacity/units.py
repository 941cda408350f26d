"""Bytes as people and Kubernetes write them."""

import re

from quire_operator.capacity.errors import CapacityError

GIB = 1 << 30
MIB = 1 << 20

_SUFFIXES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(?:[eE](\d+))?([kMGTP]i?|Ki)?")


def gib(num_bytes: float) -> str:
    """Return a size as people read it: "74.2 GiB"."""
    return f"{num_bytes / GIB:.1f} GiB"


def parse_bytes(quantity: str | int | float) -> int:
    """Return the bytes of a Kubernetes quantity: "16Gi", "16G", 17179869184.

    Raises:
        CapacityError: it is no quantity of bytes.
    """
    match = _QUANTITY.fullmatch(str(quantity).strip())
    if match is None:
        raise CapacityError(f"{quantity!r} is no size; write it as 16Gi, 16G or a number of bytes")
    number, exponent, suffix = match.groups()
    return int(float(number) * 10 ** int(exponent or 0) * _SUFFIXES[suffix or ""])
