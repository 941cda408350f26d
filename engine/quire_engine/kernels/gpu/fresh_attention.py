"""Attention of prompts from their start, through cuDNN: no key is older than the step.

cuDNN plans for each shape, which takes tens of milliseconds; so it gets few shapes, all planned
before serving: what a long prompt begins with, or prompts of equal length side by side.
`prefill_attention` does the rest.

Legend: T tokens, B prompts of a batch, C tokens of each, X all heads, H query heads, N key/value
heads, D head dim.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk

MIN_TOKENS = 2048
"""Below it, `prefill_attention` is as fast for a prompt alone, and takes others beside it."""
MAX_BATCH_TOKENS = 8192
"""Of several prompts: they fill a GPU, and each number of them is a shape to plan for."""
MULTIPLE = 1024
MAX_HEAD_DIM = 128


class FreshShape(NamedTuple):
    """What cuDNN plans for."""

    num_seqs: int
    num_tokens: int
    """Of each sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshBatch:
    """Neighbours in a step that begin sequences: their keys are those of the step."""

    first_token: int
    shape: FreshShape

    @property
    def lines(self) -> slice:
        """Where the batch lies among the step's tokens."""
        return slice(
            self.first_token, self.first_token + self.shape.num_seqs * self.shape.num_tokens
        )


def fresh_shapes(max_num_tokens: int, max_num_seqs: int) -> list[FreshShape]:
    """Return the shapes to plan for, where steps have at most so many tokens and sequences."""
    most = min(max_num_tokens, MAX_BATCH_TOKENS)
    alone = [FreshShape(1, length) for length in range(MIN_TOKENS, max_num_tokens + 1, MULTIPLE)]
    return alone + [
        FreshShape(num_seqs, length)
        for length in range(MULTIPLE, most // 2 + 1, MULTIPLE)
        for num_seqs in range(2, min(max_num_seqs, most // length) + 1)
    ]


def cut_fresh(
    chunks: Sequence[PrefillChunk], shapes: Collection[FreshShape]
) -> tuple[list[FreshBatch], list[PrefillChunk]]:
    """Return what begins sequences, in planned shapes, and all that is left.

    The chunks are in the order of the step's tokens, without gaps. Of a prompt alone, a shape may
    take the beginning; a batch takes whole prompts, so that it is one view of the tokens.
    """
    fresh: list[FreshBatch] = []
    rest: list[PrefillChunk] = []
    for (num_tokens, position), neighbours in groupby(
        chunks, lambda chunk: (chunk.num_tokens, chunk.position)
    ):
        run = list(neighbours)
        while run and position == 0 and (shape := _largest(shapes, len(run), num_tokens)):
            fresh.append(FreshBatch(first_token=run[0].first_token, shape=shape))
            if shape.num_tokens < num_tokens:
                rest.append(_after(run[0], shape.num_tokens))
            run = run[shape.num_seqs :]
        rest += run
    return fresh, rest


def _largest(shapes: Collection[FreshShape], num_seqs: int, num_tokens: int) -> FreshShape | None:
    """Return the shape that takes the most of some prompts of equal length, if one does."""
    whole = [s for s in shapes if s.num_tokens == num_tokens and s.num_seqs <= num_seqs]
    alone = [s for s in shapes if s.num_tokens <= num_tokens and s.num_seqs == 1]
    return max(whole or alone, default=None)


def _after(chunk: PrefillChunk, num_tokens: int) -> PrefillChunk:
    return replace(
        chunk,
        first_token=chunk.first_token + num_tokens,
        num_tokens=chunk.num_tokens - num_tokens,
        position=chunk.position + num_tokens,
    )


def fresh_attention(
    heads_TXD: torch.Tensor,
    out_THD: torch.Tensor,
    batch: FreshBatch,
    *,
    num_heads: int,
    scale: float,
) -> None:
    """Write causal attention within each sequence; heads are queries, then keys, then values."""
    heads_BCXD = heads_TXD[batch.lines].unflatten(0, batch.shape)
    num_kv_heads = (heads_BCXD.shape[2] - num_heads) // 2
    parts = heads_BCXD.split((num_heads, num_kv_heads, num_kv_heads), 2)
    q_BHCD, k_BNCD, v_BNCD = (part.transpose(1, 2) for part in parts)
    backend = SDPBackend.CUDNN_ATTENTION if heads_TXD.is_cuda else SDPBackend.MATH
    with sdpa_kernel(backend):
        attended_BHCD = scaled_dot_product_attention(
            q_BHCD,
            k_BNCD,
            v_BNCD,
            is_causal=True,
            scale=scale,
            enable_gqa=num_heads != num_kv_heads,
        )
    # cuDNN's answer lies in memory as the queries do: this copies it as it is, once.
    out_THD[batch.lines].unflatten(0, batch.shape).copy_(attended_BHCD.transpose(1, 2))


@cache
def plan_fresh(
    max_num_tokens: int,
    max_num_seqs: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> frozenset[FreshShape]:
    """Make cuDNN plan for every shape that steps may have, once; return those that it can do.

    Plans belong to the thread that makes them, and stay.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not is_half or head_dim > MAX_HEAD_DIM or head_dim % 8:
        return frozenset()
    if not torch.backends.cudnn.is_available() or torch.cuda.get_device_capability(device) < (9, 0):
        return frozenset()
    num_all_heads = num_heads + 2 * num_kv_heads
    heads_TXD = torch.zeros(max_num_tokens, num_all_heads, head_dim, dtype=dtype, device=device)
    out_THD = torch.empty(max_num_tokens, num_heads, head_dim, dtype=dtype, device=device)

    def can_do(shape: FreshShape) -> bool:
        batch = FreshBatch(first_token=0, shape=shape)
        try:
            fresh_attention(heads_TXD, out_THD, batch, num_heads=num_heads, scale=1.0)
        except RuntimeError:  # this cuDNN has no kernel for it
            return False
        return True

    return frozenset(filter(can_do, fresh_shapes(max_num_tokens, max_num_seqs)))
