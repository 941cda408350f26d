# ruff: noqa: N802, N806, N815
"""Random paged caches for the tests and the timing of attention kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quire_engine.kernels.gpu.attention_reference import Queries, attention_reference

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences whose keys lie scattered over a cache, and the step's queries."""

    q_THD: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table_RM: torch.Tensor
    rows: list[int]
    seq_lens: list[int]
    query_lens: list[int]
    scale: float
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None

    @property
    def rows_B(self) -> torch.Tensor:
        return torch.tensor(self.rows, dtype=torch.int32, device=self.q_THD.device)

    @property
    def seq_lens_B(self) -> torch.Tensor:
        return torch.tensor(self.seq_lens, dtype=torch.int32, device=self.q_THD.device)

    @property
    def query_starts(self) -> list[int]:
        return [sum(self.query_lens[:index]) for index in range(len(self.query_lens))]

    def expected(self, window: int | None = None) -> torch.Tensor:
        """Return the reference's answer; sequences without keys get 0."""
        columns = (self.rows, self.query_starts, self.query_lens, self.seq_lens)
        sequences = [
            Queries(row=row, first_token=first, num_tokens=tokens, num_keys=keys)
            for row, first, tokens, keys in zip(*columns, strict=True)
            if keys > 0
        ]
        return attention_reference(
            self.q_THD,
            self.k_cache,
            self.v_cache,
            self.block_table_RM,
            sequences,
            scale=self.scale,
            window=window,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )


def make_case(
    device: str,
    *,
    seq_lens: Sequence[int],
    query_lens: Sequence[int] | None = None,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    """Fill a cache with random keys; blocks and rows are in random order.

    What no sequence owns holds NaN, so that a kernel that reads it is found out.
    """
    generator = torch.Generator(device).manual_seed(seed)
    kv_dtype = kv_dtype or dtype
    num_sequences = len(seq_lens)
    query_lens = list(query_lens or [1] * num_sequences)
    num_blocks = [-(-length // block_size) for length in seq_lens]
    shape = (sum(num_blocks) + 2, block_size, num_kv_heads, head_dim)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device)

    order = torch.randperm(shape[0] - 1, generator=generator, device=device).int() + 1
    table_RM = torch.full(
        (num_sequences + 3, max(num_blocks, default=0) + 1), -1, dtype=torch.int32, device=device
    )
    rows = torch.randperm(num_sequences + 3, generator=generator, device=device).tolist()
    rows = rows[:num_sequences]
    caches = [random(*shape), random(*shape)]
    first = 0
    for row, length, count in zip(rows, seq_lens, num_blocks, strict=True):
        table_RM[row, :count] = order[first : first + count]
        if length % block_size:
            for cache in caches:
                cache[order[first + count - 1].long(), length % block_size :] = float("nan")
        first += count
    for cache in caches:
        cache[0] = float("nan")
        cache[order[first:].long()] = float("nan")
    is_fp8 = kv_dtype == FP8
    scales = [torch.tensor(value, device=device) for value in (0.5, 1.5)] if is_fp8 else [None] * 2
    k_cache, v_cache = (cache.to(kv_dtype) for cache in caches)
    q_THD = random(sum(query_lens), num_heads, head_dim).to(dtype)
    return Case(
        q_THD=q_THD,
        k_cache=k_cache,
        v_cache=v_cache,
        block_table_RM=table_RM,
        rows=rows,
        seq_lens=list(seq_lens),
        query_lens=query_lens,
        scale=head_dim**-0.5,
        k_scale=scales[0],
        v_scale=scales[1],
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected|."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm())
