"""One row times a weight: reads the weight once, at the speed of the memory.

Legend: I inputs, O outputs.

A program takes a few rows of the weight and the whole of I. It asks for the first tile of its
weights before it waits for the kernel ahead of it, so that the memory is busy while that drains.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.norm import Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvTiles:
    """How a GEMV is cut."""

    rows: int
    """Outputs of a program."""
    block: int
    """Inputs of a tile."""
    num_warps: int = 8


def gemv(
    x_I: torch.Tensor,
    weight_OI: torch.Tensor,
    out_O: torch.Tensor,
    tiles: GemvTiles,
    *,
    bias_O: torch.Tensor | None = None,
    norm: Norm | None = None,
    adds: bool = False,
    gated: bool = False,
) -> None:
    """Write W norm(x) + b; with `adds` add it to `out_O`, rounded once.

    With `gated` the weight's first half of rows makes gates and its second what they open:
    silu(gate) * up is written, half as many numbers as the weight has rows.
    """
    num_rows, width = weight_OI.shape
    num_outputs = num_rows // 2 if gated else num_rows
    _gemv_kernel[(triton.cdiv(num_outputs, tiles.rows),)](
        x_I,
        x_I if norm is None else norm.weight_E,
        weight_OI,
        x_I if bias_O is None else bias_O,
        out_O,
        0.0 if norm is None else norm.eps,
        num_outputs,
        WIDTH=width,
        ROWS=tiles.rows,
        BLOCK=tiles.block,
        IS_EVEN=width % tiles.block == 0 and num_outputs % tiles.rows == 0,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias_O is not None,
        ADDS=adds,
        GATED=gated,
        num_warps=tiles.num_warps,
        **dependent_launch(x_I.device),
    )


@triton.jit
def _load_weight(w_ptr, is_there, IS_EVEN: tl.constexpr):
    """Load a tile that nobody reads again: it should not push anything else out of the cache."""
    if IS_EVEN:
        return tl.load(w_ptr, eviction_policy="evict_first")
    else:
        return tl.load(w_ptr, mask=is_there, other=0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["eps"])
def _gemv_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    eps,
    num_outputs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_EVEN: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute ROWS outputs."""
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    is_row = (o < num_outputs)[:, None]
    w = w_ptr + o[:, None].to(tl.int64) * WIDTH + i[None, :]
    up_offset = num_outputs.to(tl.int64) * WIDTH
    tile = _load_weight(w, is_row & (i < WIDTH)[None, :], IS_EVEN)
    if GATED:
        up_tile = _load_weight(w + up_offset, is_row & (i < WIDTH)[None, :], IS_EVEN)
    if PDL:
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    up_acc = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        # The next tile is on its way while this one is multiplied.
        if start + BLOCK < WIDTH:
            is_there = is_row & (start + BLOCK + i < WIDTH)[None, :]
            next_tile = _load_weight(w + start + BLOCK, is_there, IS_EVEN)
            if GATED:
                next_up = _load_weight(w + up_offset + start + BLOCK, is_there, IS_EVEN)
        if IS_EVEN:
            x = tl.load(x_ptr + start + i).to(tl.float32)
        else:
            x = tl.load(x_ptr + start + i, mask=start + i < WIDTH, other=0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + start + i, mask=start + i < WIDTH, other=0).to(tl.float32)
        acc += x[None, :] * tile.to(tl.float32)
        if GATED:
            up_acc += x[None, :] * up_tile.to(tl.float32)
        if start + BLOCK < WIDTH:
            tile = next_tile
            if GATED:
                up_tile = next_up
    y = tl.sum(acc, 1)
    mask = o < num_outputs
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
        y *= scale
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=mask, other=0).to(tl.float32)
    if GATED:
        up = tl.sum(up_acc, 1)
        if HAS_NORM:
            up *= scale
        if HAS_BIAS:
            up += tl.load(bias_ptr + num_outputs + o, mask=mask, other=0).to(tl.float32)
        y = y * tl.sigmoid(y) * up
    if ADDS:
        y += tl.load(out_ptr + o, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + o, y.to(out_ptr.dtype.element_ty), mask=mask)
