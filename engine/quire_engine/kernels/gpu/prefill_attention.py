"""Attention of many tokens a sequence over the paged cache, which holds their own keys too.

Compute-bound: a program has a tile of rows (tokens times the query heads of one key/value head)
and goes over the keys that they see. The keys that all rows see need no mask; only the last few,
up to the tile's own tokens, do. A row's bits do not depend on which tokens share its tile.

Legend: T tokens, R rows, M blocks of a row, I tiles, H query heads, N key/value heads, D head dim,
P tokens of a block.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.attention_tiles import (
    Heads,
    PrefillTiles,
    shared_bytes_of,
    shipped_attention_table,
)
from quire_engine.kernels.gpu.attention_types import (
    LOG2_E,
    NO_SCORE,
    NO_TOP,
    dot_dtype,
    load_lines,
    to_dot_dtype,
)


def prefill_tiles(heads: Heads, device: torch.device) -> PrefillTiles:
    """Return the tiles that a model gets on a device."""
    return shipped_attention_table().prefill(heads, shared_bytes_of(device))


def prefill_tile_tokens(
    num_heads: int, num_kv_heads: int, head_dim: int, kv_bytes: int, device: torch.device
) -> int:
    """Return the tokens of a tile, which `cut_prefill_tiles` needs."""
    heads = Heads(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, kv_bytes=kv_bytes
    )
    return prefill_tiles(heads, device).block_m // heads.group


def prefill_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table_RM: torch.Tensor,
    tiles_I4: torch.Tensor,
    out_THD: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    tiles: PrefillTiles | None = None,
) -> None:
    """Write the attention of the tokens in `tiles_I4`, which `cut_prefill_tiles` made.

    The caches are (blocks, P, N, D), with the same strides. An FP8 cache needs both scales. The
    list was cut for `tiles`, by default those of `prefill_tile_tokens`.
    """
    num_tiles = tiles_I4.shape[0]
    _, num_heads, head_dim = q_THD.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    if num_tiles == 0:
        return
    group = num_heads // num_kv_heads
    heads = Heads(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        kv_bytes=k_cache.element_size(),
    )
    tiles = tiles or prefill_tiles(heads, q_THD.device)
    # Heads vary fastest: the tiles with the most keys of all heads start first.
    _prefill_kernel[(num_kv_heads, num_tiles)](
        q_THD,
        k_cache,
        v_cache,
        block_table_RM,
        tiles_I4,
        out_THD,
        k_scale,
        v_scale,
        scale * LOG2_E,
        window or 0,
        q_THD.stride(0),
        out_THD.stride(0),
        block_table_RM.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=group,
        HEAD_DIM=head_dim,
        HEAD_PADDED=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=block_size,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        HAS_WINDOW=window is not None,
        DOT_DTYPE=dot_dtype(q_THD, k_cache),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


@triton.jit(
    do_not_specialize=["table_stride_r", "window"],
    do_not_specialize_on_alignment=["tiles_ptr", "k_scale_ptr", "v_scale_ptr"],
)
def _prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    tiles_ptr,
    out_ptr,
    k_scale_ptr,
    v_scale_ptr,
    scale,
    window,
    q_stride_t,
    out_stride_t,
    table_stride_r,
    kv_stride_block,
    kv_stride_p,
    kv_stride_n,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """Attend from one tile's tokens with the query heads of one key/value head."""
    head = tl.program_id(0)
    tile = tiles_ptr + tl.program_id(1) * 4
    first_token = tl.load(tile).to(tl.int64)
    num_tokens = tl.load(tile + 1)
    row = tl.load(tile + 2).to(tl.int64)
    first_position = tl.load(tile + 3)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD_PADDED)
    token = m // GROUP
    position = first_position + token
    real = (token < num_tokens)[:, None] & (d < HEAD_DIM)[None, :]
    q_head = head * GROUP + m % GROUP
    q_line = (first_token + token) * q_stride_t + q_head * HEAD_DIM
    q = tl.load(q_ptr + q_line[:, None] + d[None, :], mask=real, other=0)
    q = to_dot_dtype(q, DOT_DTYPE)
    if k_scale_ptr is not None:
        scale *= tl.load(k_scale_ptr)
    table = table_ptr + row * table_stride_r
    k_head = k_ptr + head * kv_stride_n
    v_head = v_ptr + head * kv_stride_n
    top = tl.full((BLOCK_M,), NO_TOP, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, HEAD_PADDED), tl.float32)
    end = first_position + num_tokens
    # [start, bare): keys that every row sees; [bare, end): the rest.
    start = 0
    bare = (first_position + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        start = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    acc, total, top = _attend(
        acc, total, top, q, position, start, bare, end, table, k_head, v_head, scale, window,
        kv_stride_block, kv_stride_p, HEAD_DIM, HEAD_PADDED, BLOCK_SIZE, BLOCK_N, HAS_WINDOW,
        DOT_DTYPE, False,
    )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, q, position, bare, end, end, table, k_head, v_head, scale, window,
        kv_stride_block, kv_stride_p, HEAD_DIM, HEAD_PADDED, BLOCK_SIZE, BLOCK_N, HAS_WINDOW,
        DOT_DTYPE, True,
    )  # fmt: skip
    acc = acc / total[:, None]
    if v_scale_ptr is not None:
        acc *= tl.load(v_scale_ptr)
    out_line = (first_token + token) * out_stride_t + q_head * HEAD_DIM
    tl.store(out_ptr + out_line[:, None] + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _attend(
    acc,
    total,
    top,
    q,
    position,
    start,
    stop,
    end,
    table,
    k_head,
    v_head,
    scale,
    window,
    kv_stride_block,
    kv_stride_p,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    IS_MASKED: tl.constexpr,
):
    """Add the keys of [start, stop) to what has been seen of a softmax."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD_PADDED)
    IS_PADDED: tl.constexpr = HEAD_DIM != HEAD_PADDED
    # Blocks are looked up a step ahead, so that the loads of keys depend on no load of their step.
    block = tl.load(table + tl.minimum(start + n, end - 1) // BLOCK_SIZE)
    for first in range(start, stop, BLOCK_N):
        t = first + n
        if IS_MASKED:
            # Past the end, the last line again: no value that is not a key's.
            t = tl.minimum(t, end - 1)
        line = block.to(tl.int64) * kv_stride_block + (t % BLOCK_SIZE) * kv_stride_p
        block = tl.load(table + tl.minimum(first + BLOCK_N + n, end - 1) // BLOCK_SIZE)
        k = load_lines(
            k_head + line[None, :] + d[:, None], (d < HEAD_DIM)[:, None], IS_PADDED, DOT_DTYPE
        )
        scores = tl.dot(q, k, input_precision="ieee")
        if IS_MASKED:
            scores = tl.where(position[:, None] >= (first + n)[None, :], scores, NO_SCORE)
        if HAS_WINDOW:
            scores = tl.where(position[:, None] - window < (first + n)[None, :], scores, NO_SCORE)
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Scaled by the same rounding in both: the largest weight is exactly 1.
        weights = tl.exp2(scores * scale - (new_top * scale)[:, None])
        keep = tl.exp2((top - new_top) * scale)
        total = total * keep + tl.sum(weights, 1)
        acc = acc * keep[:, None]
        v = load_lines(
            v_head + line[:, None] + d[None, :], (d < HEAD_DIM)[None, :], IS_PADDED, DOT_DTYPE
        )
        acc = tl.dot(weights.to(DOT_DTYPE), v, acc, input_precision="ieee")
        top = new_top
    return acc, total, top
