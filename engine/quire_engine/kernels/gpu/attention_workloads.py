"""Attention to be timed: sequences of given lengths over a cache that no level of memory holds.

Legend: B batch slots, R rows, M blocks of a row, T tokens, H query heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quire_engine.kernels.gpu.attention_reference import Queries, attention_reference
from quire_engine.kernels.gpu.attention_tiles import (
    AttentionTable,
    DecodeTiles,
    Heads,
    PrefillTiles,
)
from quire_engine.kernels.gpu.decode_attention import decode_attention
from quire_engine.kernels.gpu.decode_attention_plan import DecodePlan
from quire_engine.kernels.gpu.prefill_attention import prefill_attention
from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk, cut_prefill_tiles

BLOCK_SIZE = 16
MAX_LAYERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """How many tokens each sequence computes, and how many keys it has with them."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]

    @property
    def queries(self) -> list[Queries]:
        """Sequence b is in row b."""
        firsts = [sum(self.query_lens[:row]) for row in range(len(self.query_lens))]
        columns = zip(firsts, self.query_lens, self.seq_lens, strict=True)
        return [
            Queries(row=row, first_token=first, num_tokens=tokens, num_keys=keys)
            for row, (first, tokens, keys) in enumerate(columns)
        ]

    @property
    def num_scores(self) -> float:
        """Pairs of query and key in one head, those that causality hides left out."""
        pairs = zip(self.query_lens, self.seq_lens, strict=True)
        return sum(tokens * (keys - tokens) + tokens * (tokens + 1) / 2 for tokens, keys in pairs)


class Workload:
    """Sequences with a cache of random keys for several layers."""

    def __init__(
        self,
        sequences: Sequences,
        heads: Heads,
        device: torch.device,
        *,
        kv_dtype: torch.dtype,
        num_processors: int,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.sequences, self.heads, self._device = sequences, heads, device
        self._kv_dtype, self._num_processors = kv_dtype, num_processors
        num_blocks = [-(-length // BLOCK_SIZE) for length in sequences.seq_lens]
        self.layer_bytes = sum(sequences.seq_lens) * heads.num_kv_heads * heads.head_dim
        self.layer_bytes *= 2 * heads.kv_bytes
        self.num_layers = max(1, min(MAX_LAYERS, cache_bytes // max(1, self.layer_bytes)))
        lines = (BLOCK_SIZE, heads.num_kv_heads, heads.head_dim)
        shape = (self.num_layers, sum(num_blocks) + 1, *lines)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._k, self._v = (
            torch.randn(shape, device=device, dtype=dtype).to(kv_dtype) for _ in range(2)
        )
        self._scale_1 = torch.ones((), device=device) if kv_dtype.itemsize == 1 else None
        self._table_RM = self._scattered(num_blocks)
        num_tokens = sum(sequences.query_lens)
        q_shape = (num_tokens, heads.num_heads, heads.head_dim)
        self._q_THD = torch.randn(q_shape, device=device, dtype=dtype)
        self.out_THD = torch.empty_like(self._q_THD)

    @property
    def flops(self) -> float:
        """Operations of one layer."""
        return 4 * self.sequences.num_scores * self.heads.num_heads * self.heads.head_dim

    def plan(self, tiles: DecodeTiles) -> DecodePlan:
        """Return the plan of decode with some tiles."""
        batch_size = len(self.sequences.seq_lens)
        plan = DecodePlan(
            max_batch=batch_size,
            num_heads=self.heads.num_heads,
            num_kv_heads=self.heads.num_kv_heads,
            head_dim=self.heads.head_dim,
            device=self._device,
            num_processors=self._num_processors,
            kv_dtype=self._kv_dtype,
            table=AttentionTable([(self.heads, size, tiles) for size in range(1, batch_size + 1)]),
        )
        plan.update(self._int32(self.sequences.seq_lens), self._int32(range(batch_size)))
        # What is not written shows, and decode does not start before the plan is there.
        self.out_THD.fill_(float("nan"))
        return plan

    def decode(self, plan: DecodePlan) -> None:
        """Run every layer."""
        for layer in range(self.num_layers):
            decode_attention(
                self._q_THD,
                self._k[layer],
                self._v[layer],
                self._table_RM,
                plan,
                self.out_THD,
                scale=self._scale,
                k_scale=self._scale_1,
                v_scale=self._scale_1,
            )

    def tile_list(self, tiles: PrefillTiles) -> torch.Tensor:
        """Return the work list of prefill with some tiles."""
        chunks = [
            PrefillChunk(
                row=q.row,
                first_token=q.first_token,
                num_tokens=q.num_tokens,
                position=q.num_keys - q.num_tokens,
            )
            for q in self.sequences.queries
        ]
        listed = cut_prefill_tiles(chunks, tiles.block_m // self.heads.group)
        self.out_THD.fill_(float("nan"))
        return torch.from_numpy(listed).to(self._device)

    def prefill(self, tiles_I4: torch.Tensor, tiles: PrefillTiles) -> None:
        """Run every layer."""
        for layer in range(self.num_layers):
            prefill_attention(
                self._q_THD,
                self._k[layer],
                self._v[layer],
                self._table_RM,
                tiles_I4,
                self.out_THD,
                scale=self._scale,
                k_scale=self._scale_1,
                v_scale=self._scale_1,
                tiles=tiles,
            )

    def relative_error(self) -> float:
        """Return how far the output of the last layer is from the reference."""
        expected_THD = attention_reference(
            self._q_THD,
            self._k[-1],
            self._v[-1],
            self._table_RM,
            self.sequences.queries,
            scale=self._scale,
            k_scale=self._scale_1,
            v_scale=self._scale_1,
        )
        return float((self.out_THD - expected_THD).norm() / expected_THD.norm())

    @property
    def _scale(self) -> float:
        return float(self.heads.head_dim**-0.5)

    def _int32(self, numbers: Sequence[int] | range) -> torch.Tensor:
        return torch.tensor(list(numbers), dtype=torch.int32, device=self._device)

    def _scattered(self, num_blocks: list[int]) -> torch.Tensor:
        order = torch.randperm(sum(num_blocks), device=self._device).int() + 1
        table_RM = torch.zeros(
            len(num_blocks), max(num_blocks), dtype=torch.int32, device=self._device
        )
        for row, blocks in enumerate(order.split(num_blocks)):
            table_RM[row, : len(blocks)] = blocks
        return table_RM
