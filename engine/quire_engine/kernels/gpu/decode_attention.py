"""Attention of one new token a sequence over the paged cache.

Memory-bound: every key and value is read once, by the program that has all query heads of their
key/value head. Sequences that the plan split are merged by whichever program finishes last, so
that a layer costs one launch; the order of the merge is fixed, and so are the bits.

Legend: B batch slots, R rows, M blocks of a row, I items, H query heads, N key/value heads,
G = H / N, D head dim, P tokens of a block.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.attention_types import (
    LOG2_E,
    NO_SCORE,
    dot_dtype,
    load_lines,
    to_dot_dtype,
)
from quire_engine.kernels.gpu.decode_attention_plan import ITEM_FIELDS, DecodePlan
from quire_engine.kernels.gpu.launch import dependent_launch


def decode_attention(
    q_BHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table_RM: torch.Tensor,
    plan: DecodePlan,
    out_BHD: torch.Tensor,
    *,
    scale: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Write the attention of slot b's token to out[b]; padding slots get 0.

    The caches are (blocks, P, N, D), with the same strides. `plan.update` has seen this step's
    lengths and rows, and has the layer's window. An FP8 cache needs both scales.
    """
    batch_size, num_heads, head_dim = q_BHD.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    group = num_heads // num_kv_heads
    tiles = plan.tiles(batch_size)
    # Heads vary fastest: programs that run together read neighbouring memory.
    grid = (num_kv_heads, plan.num_items_bound(batch_size))
    _decode_kernel[grid](
        q_BHD,
        k_cache,
        v_cache,
        block_table_RM,
        plan.items_I8,
        plan.num_items,
        plan.partial_IHD,
        plan.log_sums_IH,
        plan.arrivals_BN,
        out_BHD,
        k_scale,
        v_scale,
        scale * LOG2_E,
        q_BHD.stride(0),
        out_BHD.stride(0),
        block_table_RM.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_N=tiles.block_n,
        LOOKS_AHEAD=tiles.looks_ahead,
        DOT_DTYPE=dot_dtype(q_BHD, k_cache),
        BLOCK_SPLITS=tiles.block_splits(plan.heads),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **dependent_launch(q_BHD.device),
    )


@triton.jit(
    do_not_specialize=["table_stride_r"],
    do_not_specialize_on_alignment=["k_scale_ptr", "v_scale_ptr"],
)
def _decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    items_ptr,
    num_items_ptr,
    partial_ptr,
    log_sums_ptr,
    arrivals_ptr,
    out_ptr,
    k_scale_ptr,
    v_scale_ptr,
    scale,
    q_stride_b,
    out_stride_b,
    table_stride_r,
    kv_stride_block,
    kv_stride_p,
    kv_stride_n,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOOKS_AHEAD: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend to one item's keys of one key/value head; the last of a slot's items merges them."""
    if PDL:
        # The plan is read before the wait: `DecodePlan` says why it is there by then.
        tl.extra.cuda.gdc_launch_dependents()
    head = tl.program_id(0)
    item = tl.program_id(1)
    slot, row, start, end, first_item, num_splits = _read_item(items_ptr + item * ITEM_FIELDS)
    num_items = tl.load(num_items_ptr)
    strides = (table_stride_r, kv_stride_block, kv_stride_p, kv_stride_n)
    cache = (table_ptr, k_ptr, v_ptr, strides)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if item >= num_items:
        return
    g = tl.arange(0, max(16, triton.next_power_of_2(GROUP)))
    d = tl.arange(0, triton.next_power_of_2(HEAD_DIM))
    n = tl.arange(0, BLOCK_N)
    q_head = head * GROUP + g
    real = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(
        q_ptr + slot * q_stride_b + q_head[:, None] * HEAD_DIM + d[None, :], mask=real, other=0
    )
    q = to_dot_dtype(q, DOT_DTYPE)
    if k_scale_ptr is not None:
        scale *= tl.load(k_scale_ptr)
    mean, top, total = _attend(
        q, n, start, end, scale, cache, row, head, v_scale_ptr, HEAD_DIM, BLOCK_SIZE, LOOKS_AHEAD
    )
    out = out_ptr + slot * out_stride_b
    if num_splits == 1:
        mean = tl.where(end > start, mean, 0)
        place = out + q_head[:, None] * HEAD_DIM + d[None, :]
        tl.store(place, mean.to(out_ptr.dtype.element_ty), mask=real)
    else:
        num_heads = tl.num_programs(0) * GROUP
        part = item.to(tl.int64) * num_heads + q_head
        tl.store(partial_ptr + part[:, None] * HEAD_DIM + d[None, :], mean, mask=real)
        tl.store(log_sums_ptr + part, top + tl.log2(total), mask=g < GROUP)
        # Every thread's part must be written before one of them counts the program as done.
        tl.debug_barrier()
        arrivals = arrivals_ptr + slot * tl.num_programs(0) + head
        if tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == num_splits - 1:
            tl.store(arrivals, 0)
            parts = (partial_ptr, log_sums_ptr, first_item, num_splits)
            _merge(parts, out, head, GROUP, HEAD_DIM, BLOCK_SPLITS)


@triton.jit
def _read_item(fields):
    """Read slot, row, first key, end of keys, first item of the slot and splits of the slot."""
    # All of these before any is used: one wait for memory instead of two.
    slot = tl.load(fields).to(tl.int64)
    row = tl.load(fields + 1).to(tl.int64)
    start = tl.load(fields + 2)
    end = tl.load(fields + 3)
    return slot, row, start, end, tl.load(fields + 4), tl.load(fields + 5)


@triton.jit
def _of_head(cache, row, head):
    """Return the row's blocks, and where keys and values of the head begin.

    `cache` is the table, keys, values, and strides of a row, a block, a token and a head.
    """
    table_ptr, k_ptr, v_ptr, strides = cache
    table = table_ptr + row * strides[0]
    return table, k_ptr + head * strides[3], v_ptr + head * strides[3]


@triton.jit
def _attend(
    q,
    n,
    start,
    end,
    scale,
    cache,
    row,
    head,
    v_scale_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LOOKS_AHEAD: tl.constexpr,
):
    """Return the mean of the values of keys, and the top score and sum of their weights.

    `n` counts the keys of a step.
    """
    table, k_head, v_head = _of_head(cache, row, head)
    strides = cache[3]
    d = tl.arange(0, q.shape[1])
    IS_PADDED: tl.constexpr = q.shape[1] != HEAD_DIM
    BLOCK_N: tl.constexpr = n.shape[0]
    top = tl.full((q.shape[0],), NO_SCORE, tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    acc = tl.zeros((q.shape[0], q.shape[1]), tl.float32)
    # Past the end, the last line again: it is at hand, and no value that is not a key's.
    t = tl.minimum(start + n, end - 1)
    block = tl.load(table + t // BLOCK_SIZE)
    for first in range(start, end, BLOCK_N):
        if not LOOKS_AHEAD:
            t = tl.minimum(first + n, end - 1)
            block = tl.load(table + t // BLOCK_SIZE)
        line = block.to(tl.int64) * strides[1] + (t % BLOCK_SIZE) * strides[2]
        if LOOKS_AHEAD:
            # The loads of keys depend on no load of their own step, and can run further ahead.
            t = tl.minimum(first + BLOCK_N + n, end - 1)
            block = tl.load(table + t // BLOCK_SIZE)
        k = load_lines(
            k_head + line[None, :] + d[:, None], (d < HEAD_DIM)[:, None], IS_PADDED, q.dtype
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where((first + n < end)[None, :], scores, NO_SCORE)
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        v = load_lines(
            v_head + line[:, None] + d[None, :], (d < HEAD_DIM)[None, :], IS_PADDED, q.dtype
        )
        total = total * keep + tl.sum(weights, 1)
        acc = acc * keep[:, None]
        acc = tl.dot(weights.to(q.dtype), v, acc, input_precision="ieee")
        top = new_top
    # An item without keys is a padding slot's.
    mean = acc / tl.where(end > start, total, 1)[:, None]
    if v_scale_ptr is not None:
        mean *= tl.load(v_scale_ptr)
    return mean, top, total


@triton.jit
def _merge(
    parts,
    out,
    head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Write the weighted mean of a slot's partial results."""
    partial_ptr, log_sums_ptr, first_item, num_splits = parts
    num_heads = tl.num_programs(0) * GROUP
    GROUP_PADDED: tl.constexpr = triton.next_power_of_2(GROUP)
    HEAD_PADDED: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    s = tl.arange(0, BLOCK_SPLITS)
    g = tl.arange(0, GROUP_PADDED)
    d = tl.arange(0, HEAD_PADDED)
    q_head = head * GROUP + g
    real = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    top = tl.full((GROUP_PADDED,), NO_SCORE, tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    acc = tl.zeros((GROUP_PADDED, HEAD_PADDED), tl.float32)
    for first in range(0, num_splits, BLOCK_SPLITS):
        split = first + s
        at = (first_item + split).to(tl.int64)[:, None] * num_heads + q_head[None, :]
        mask = (split < num_splits)[:, None] & (g < GROUP)[None, :]
        # Past the first-level cache, which other multiprocessors' writes do not reach.
        log_sums = tl.load(log_sums_ptr + at, mask=mask, other=NO_SCORE, cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + at[:, :, None] * HEAD_DIM + d[None, None, :],
            mask=mask[:, :, None] & (d < HEAD_DIM)[None, None, :],
            other=0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(log_sums, 0))
        weights = tl.exp2(log_sums - new_top[None, :])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weights, 0)
        acc = acc * keep[:, None] + tl.sum(partial * weights[:, :, None], 0)
        top = new_top
    acc = acc / total[:, None]
    tl.store(out + q_head[:, None] * HEAD_DIM + d[None, :], acc.to(out.dtype.element_ty), mask=real)
