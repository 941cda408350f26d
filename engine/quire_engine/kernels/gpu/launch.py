"""Programmatic dependent launch: a kernel starts while the one before it drains.

A kernel that is launched with `**dependent_launch(device)` takes a constexpr `PDL`, and where that
is set calls `gdc_launch_dependents` at once and `gdc_wait` before it touches anything that another
kernel writes. What it reads before `gdc_wait` may only be weights, or what was written before the
last kernel that is not launched so, as a step's plan of attention is. It may
fetch anything into the L2 cache.
"""

from functools import cache

import torch


@cache
def has_dependent_launch(device: torch.device) -> bool:
    """Tell whether a device can start a kernel before the one ahead of it has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Return the keyword arguments of a launch that may overlap with the kernel ahead of it."""
    if has_dependent_launch(device):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}
