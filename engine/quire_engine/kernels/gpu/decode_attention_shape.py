"""Tile sizes of decode attention, from static shapes alone."""

from dataclasses import dataclass
from typing import Self

import triton


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeShape:
    """How a launch of decode attention is cut."""

    block_n: int
    """Keys of one step of the loop."""
    num_warps: int
    num_stages: int
    programs_per_processor: int
    """Programs that keep a multiprocessor's share of memory bandwidth busy."""
    min_split_keys: int
    """Fewer keys than this are not worth a program of their own."""

    @classmethod
    def of(
        cls, *, batch_size: int, num_kv_heads: int, group: int, head_dim: int, kv_bytes: int
    ) -> Self:
        """Choose for a batch."""
        block_n = 64 if head_dim * kv_bytes <= 256 else 32
        return cls(
            block_n=block_n,
            num_warps=2,
            num_stages=3,
            programs_per_processor=4,
            min_split_keys=128,
        )

    def block_splits(self, group: int, head_dim: int) -> int:
        """Return how many splits a merge reads at once: what its threads' registers hold."""
        numbers = int(triton.next_power_of_2(group) * triton.next_power_of_2(head_dim))
        return max(1, 128 * 32 * self.num_warps // numbers)
