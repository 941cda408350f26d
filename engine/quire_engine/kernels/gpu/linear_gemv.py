"""One row times a weight: reads the weight once, at the speed of the memory.

Legend: I inputs, O outputs.

A program takes a few rows of the weight and the whole of I. It asks for the first tile of its
weights before it waits for the kernel ahead of it, so that the memory is busy while that drains,
and may have more of them fetched into the L2 cache: attention ahead of it leaves the memory idle.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.prefetch import LINE_BYTES
from quire_engine.kernels.gpu.row_products import multiply_rows, total_of_rows
from quire_engine.kernels.gpu.tensor_rows import multiply_pairs

WARP_BYTES = 512
"""What a warp loads of a row, 16 bytes a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvTiles:
    """How a GEMV is cut."""

    rows: int
    """Outputs of a program."""
    block: int
    """Inputs of a tile."""
    num_warps: int = 8
    tensor_cores: bool = False
    """Multiply pairs of rows on tensor cores."""
    prefetch: int = 0
    """Inputs of each row after its first tile that are fetched into the L2 cache ahead; a power of
    two or 0."""


def gemv(
    x_I: torch.Tensor,
    weight_OI: torch.Tensor,
    out_O: torch.Tensor,
    tiles: GemvTiles,
    *,
    scale: torch.Tensor | None = None,
    bias_O: torch.Tensor | None = None,
    norm: Norm | None = None,
    adds: bool = False,
    gated: bool = False,
) -> None:
    """Write W norm(x) + b; with `adds` add it to `out_O`, rounded once.

    `scale` is that of an 8-bit weight, (O,) or (O / 128, I / 128), float32.

    With `gated` the weight's first half of rows makes gates and its second what they open:
    silu(gate) * up is written, half as many numbers as the weight has rows.
    """
    num_rows, width = weight_OI.shape
    num_outputs = num_rows // 2 if gated else num_rows
    is_even = width % tiles.block == 0 and num_outputs % tiles.rows == 0
    assert tiles.block + tiles.prefetch <= width or not tiles.prefetch, (
        f"{tiles} for {width} inputs"
    )
    _gemv_kernel[(triton.cdiv(num_outputs, tiles.rows),)](
        x_I,
        x_I if norm is None else norm.weight_E,
        weight_OI,
        x_I if scale is None else scale,
        x_I if bias_O is None else bias_O,
        out_O,
        0.0 if norm is None else norm.eps,
        num_outputs,
        WIDTH=width,
        ROWS=tiles.rows,
        BLOCK=tiles.block,
        PREFETCH=tiles.prefetch if is_even and x_I.device.type != "cpu" else 0,
        LINE=LINE_BYTES.value // weight_OI.element_size(),
        IS_EVEN=is_even,
        SCALE_DIMS=0 if scale is None else scale.dim(),
        HAS_NORM=norm is not None,
        HAS_BIAS=bias_O is not None,
        ADDS=adds,
        GATED=gated,
        TENSOR_CORES=uses_tensor_cores(tiles, weight_OI, scale, gated=gated),
        num_warps=tiles.num_warps,
        **dependent_launch(x_I.device),
    )


def uses_tensor_cores(
    tiles: GemvTiles, weight_OI: torch.Tensor, scale: torch.Tensor | None, *, gated: bool = False
) -> bool:
    """Tell whether tiles are for tensor cores, and the weight is one that these can multiply.

    Tiles must be whole, and hold 16 bytes of a row for each thread. Where kernels are interpreted,
    there are no tensor cores.
    """
    if not tiles.tensor_cores or weight_OI.device.type == "cpu" or weight_OI.itemsize > 2:
        return False
    num_rows, width = weight_OI.shape
    rows = 2 * tiles.rows if gated else tiles.rows
    row_bytes = tiles.block * weight_OI.itemsize
    has_whole_words = row_bytes >= WARP_BYTES and rows * row_bytes >= (
        2 * WARP_BYTES * tiles.num_warps
    )
    is_whole = width % 16 == 0 and num_rows % rows == 0
    return is_whole and has_whole_words and (scale is None or scale.dim() == 1)


@triton.jit
def multiply_row(
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
    TENSOR_CORES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Do what `multiply_rows` does, on tensor cores if so told: then rows are always paired.

    `row` is x, the norm's weight and eps; `weight` is a weight and its scale.
    """
    if TENSOR_CORES:
        return multiply_pairs(
            row, weight[0], o, num_apart, WIDTH, BLOCK, PREFETCH, LINE, HAS_NORM, PDL
        )
    else:
        return multiply_rows(
            row,
            weight,
            o,
            num_apart,
            exists,
            WIDTH,
            BLOCK,
            PREFETCH,
            LINE,
            IS_EVEN,
            SCALE_DIMS,
            HAS_NORM,
            PAIRED,
            PDL,
        )


@triton.jit(do_not_specialize=["eps"])
def _gemv_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    eps,
    num_outputs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    SCALE_DIMS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute ROWS outputs."""
    PAIRED: tl.constexpr = GATED or TENSOR_CORES
    STEP: tl.constexpr = ROWS if GATED or not TENSOR_CORES else ROWS // 2
    o = tl.program_id(0) * ROWS + tl.arange(0, STEP)
    num_apart = num_outputs if GATED else STEP
    exists = o < num_outputs
    acc, pair_acc, factor = multiply_row(
        (x_ptr, norm_ptr, eps),
        (w_ptr, scale_ptr),
        o,
        num_apart,
        exists,
        WIDTH,
        BLOCK,
        PREFETCH,
        LINE,
        IS_EVEN,
        SCALE_DIMS,
        HAS_NORM,
        GATED,
        TENSOR_CORES,
        PDL,
    )
    y = total_of_rows(acc, factor, scale_ptr + o, bias_ptr + o, exists, SCALE_DIMS, HAS_BIAS)
    if PAIRED:
        o2 = o + num_apart
        y2 = total_of_rows(
            pair_acc, factor, scale_ptr + o2, bias_ptr + o2, exists, SCALE_DIMS, HAS_BIAS
        )
        if GATED:
            y = y * tl.sigmoid(y) * y2
        else:
            if ADDS:
                y2 += tl.load(out_ptr + o2, mask=exists, other=0).to(tl.float32)
            tl.store(out_ptr + o2, y2.to(out_ptr.dtype.element_ty), mask=exists)
    if ADDS:
        y += tl.load(out_ptr + o, mask=exists, other=0).to(tl.float32)
    tl.store(out_ptr + o, y.to(out_ptr.dtype.element_ty), mask=exists)
