"""One row times rows of a weight, number by number, in every type and on every device."""

import triton
import triton.language as tl

from quire_engine.kernels.gpu.prefetch import prefetch_rows

SCALE_BLOCK = tl.constexpr(128)
"""Outputs, and inputs, that share a scale where a weight has one for each block."""


@triton.jit
def load_weight(w_ptr, is_there, IS_EVEN: tl.constexpr):
    """Load a tile that nobody reads again: it should not push anything else out of the cache."""
    if IS_EVEN:
        return tl.load(w_ptr, eviction_policy="evict_first")
    else:
        return tl.load(w_ptr, mask=is_there, other=0.0, eviction_policy="evict_first")


@triton.jit
def _accumulate(acc, x, tile, scale_ptr, o, start, WIDTH: tl.constexpr, SCALE_DIMS: tl.constexpr):
    """Add the products of a tile, scaled where every SCALE_BLOCK inputs have a scale."""
    products = x[None, :] * tile.to(tl.float32)
    if SCALE_DIMS < 2:
        return acc + products
    else:
        ROWS: tl.constexpr = tile.shape[0]
        GROUPS: tl.constexpr = tile.shape[1] // SCALE_BLOCK
        g = start // SCALE_BLOCK + tl.arange(0, GROUPS)[None, :]
        stride: tl.constexpr = (WIDTH + SCALE_BLOCK - 1) // SCALE_BLOCK
        place = scale_ptr + o[:, None] // SCALE_BLOCK * stride + g
        scale = tl.load(place, mask=g < stride, other=0)
        return acc + scale * tl.sum(tl.reshape(products, (ROWS, GROUPS, SCALE_BLOCK)), 2)


@triton.jit
def multiply_rows(
    row,
    weight,
    o,
    num_apart,
    exists,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    SCALE_DIMS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PAIRED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Multiply rows `o` of the weight, and if PAIRED those `num_apart` further on, with x.

    `row` is x, the norm's weight and eps; `weight` is a weight and its scale. Returns the products
    of both rows, not yet added up, and the factor of the norm. The kernel ahead is waited for
    between the first weights and x.
    """
    x_ptr, norm_ptr, eps = row
    w_ptr, scale_ptr = weight
    ROWS: tl.constexpr = o.shape[0]
    i = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    is_row = exists[:, None]
    w = w_ptr + o[:, None].to(tl.int64) * WIDTH + i[None, :]
    pair_offset = tl.cast(num_apart, tl.int64) * WIDTH
    tile = load_weight(w, is_row & (i < WIDTH)[None, :], IS_EVEN)
    if PAIRED:
        pair_tile = load_weight(w + pair_offset, is_row & (i < WIDTH)[None, :], IS_EVEN)
    if PREFETCH > 0:
        rest = w_ptr + o[:, None].to(tl.int64) * WIDTH + BLOCK
        prefetch_rows(rest, PREFETCH, LINE)
        if PAIRED:
            prefetch_rows(rest + pair_offset, PREFETCH, LINE)
    if PDL:
        tl.extra.cuda.gdc_wait()
    SUMS: tl.constexpr = BLOCK if SCALE_DIMS < 2 else BLOCK // SCALE_BLOCK
    acc = tl.zeros((ROWS, SUMS), tl.float32)
    pair_acc = tl.zeros((ROWS, SUMS), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        # The next tile is on its way while this one is multiplied.
        if start + BLOCK < WIDTH:
            is_there = is_row & (start + BLOCK + i < WIDTH)[None, :]
            next_tile = load_weight(w + start + BLOCK, is_there, IS_EVEN)
            if PAIRED:
                next_pair = load_weight(w + pair_offset + start + BLOCK, is_there, IS_EVEN)
        if IS_EVEN:
            x = tl.load(x_ptr + start + i).to(tl.float32)
        else:
            x = tl.load(x_ptr + start + i, mask=start + i < WIDTH, other=0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + start + i, mask=start + i < WIDTH, other=0).to(tl.float32)
        acc = _accumulate(acc, x, tile, scale_ptr, o, start, WIDTH, SCALE_DIMS)
        if PAIRED:
            pair_o = o + num_apart
            pair_acc = _accumulate(
                pair_acc, x, pair_tile, scale_ptr, pair_o, start, WIDTH, SCALE_DIMS
            )
        if start + BLOCK < WIDTH:
            tile = next_tile
            if PAIRED:
                pair_tile = next_pair
    factor = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps) if HAS_NORM else 1.0
    return acc, pair_acc, factor


@triton.jit
def total_of_rows(
    acc,
    factor,
    scale_ptr,
    bias_ptr,
    mask,
    SCALE_DIMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Add up the products of each row, and finish it."""
    y = tl.sum(acc, 1) * factor
    if SCALE_DIMS == 1:
        y *= tl.load(scale_ptr, mask=mask, other=0)
    if HAS_BIAS:
        y += tl.load(bias_ptr, mask=mask, other=0).to(tl.float32)
    return y
