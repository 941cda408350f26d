"""Memory for packed weights: one mapping in huge pages, so that streaming it misses no TLB."""

import mmap

import torch

ALIGNMENT = 64


def aligned(num_bytes: int) -> int:
    """Round up to whole cache lines."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """Hands out parts of one mapping, each on a cache line of its own."""

    def __init__(self, num_bytes: int) -> None:
        self._mapping = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self._num_used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """Return the next bytes; they are zero."""
        start = self._num_used
        self._num_used += aligned(num_bytes)
        assert self._num_used <= len(self._bytes), "the arena is too small"
        return self._bytes[start : start + num_bytes]
