"""How many threads sampling takes on a CPU.

Sampling is a chain of short operations. Spread over all cores each of them waits for the slowest
thread, which on a machine that does anything else costs a scheduler's time slice every time: a
pass over 32 rows of 49152 logits took 8 to 16 ms on two busy cores, 1 ms on one of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ELEMENTS_PER_THREAD = 1 << 22


@contextmanager
def few_threads(logits_BV: torch.Tensor) -> Iterator[None]:
    """Let torch use only as many threads as the size of the logits pays for."""
    before = torch.get_num_threads()
    wanted = min(before, 1 + logits_BV.numel() // _ELEMENTS_PER_THREAD)
    if logits_BV.device.type != "cpu" or wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
