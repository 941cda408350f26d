"""Tile sizes of prefill attention, from static shapes alone."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillShape:
    """How a launch of prefill attention is cut."""

    block_m: int
    """Rows of a tile: tokens times the query heads of a key/value head."""
    block_n: int
    """Keys of one step of the loop."""
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, *, group: int, head_dim: int, kv_bytes: int) -> Self:
        """Choose for a model."""
        if head_dim <= 128 and kv_bytes <= 2:
            return cls(block_m=128, block_n=128, num_warps=8, num_stages=3)
        if kv_bytes <= 2:
            return cls(block_m=128, block_n=64, num_warps=8, num_stages=2)
        return cls(block_m=64, block_n=32, num_warps=4, num_stages=2)

    def tile_tokens(self, group: int) -> int:
        """Return how many tokens' rows fit in a tile."""
        return self.block_m // group
