"""Rows times a weight, with tensor cores: few rows must not slow down reading the weight.

Legend: T tokens, I inputs, O outputs, S splits of I.

A program takes a tile of tokens and outputs, and one of S parts of I. It fetches the start of its
weights into the L2 cache before it waits for the kernel ahead of it. With several parts, whoever
finishes an output tile last adds the parts up, in their order: the bits do not depend on who.
With one part the bits of a row depend on the tiles alone, not on the number of rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.prefetch import LINE_BYTES, prefetch_rows
from quire_engine.kernels.gpu.row_products import SCALE_BLOCK, load_weight

TOKEN_TILES = tl.constexpr(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkinnyTiles:
    """How a skinny product is cut."""

    max_tokens: int
    """Rows of a tile of x: 16, 32, 64 or 128. There may be more rows only if there is one split."""
    columns: int
    """Outputs of a program."""
    depth: int
    """Inputs of a tile."""
    splits: int = 1
    """Parts of the inputs; each must be a multiple of `depth`."""
    weight_first: bool = False
    """Make the weight the left factor, which suits Hopper's instruction for 64 rows and more."""
    prefetch: int = 0
    """Inputs of each row that are fetched into the L2 cache ahead; a power of two or 0."""
    num_warps: int = 4
    num_stages: int = 4

    def fits(self, num_inputs: int) -> bool:
        """Tell whether the inputs fall into equal parts."""
        return self.splits == 1 or num_inputs % (self.splits * self.depth) == 0


def skinny(
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    out_TO: torch.Tensor,
    tiles: SkinnyTiles,
    counters: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    bias_O: torch.Tensor | None = None,
    adds: bool = False,
    gated: bool = False,
) -> None:
    """Write x W^T + b; `adds` and `gated` as in `gemv`.

    The scales, float32, are those of an 8-bit x and weight: (T,) and (O,), or (T, I / 128) and
    (O / 128, I / 128), which asks for a depth of 128.

    `counters`, int32 and zero, one per `columns` outputs, are needed with several splits; they
    are zero again when the product is done.
    """
    (num_tokens, width), num_rows = x_TI.shape, weight_OI.shape[0]
    num_outputs = num_rows // 2 if gated else num_rows
    num_tiles = triton.cdiv(num_outputs, tiles.columns) * triton.cdiv(num_tokens, tiles.max_tokens)
    is_even = num_outputs % tiles.columns == 0 and width % (tiles.splits * tiles.depth) == 0
    assert tiles.fits(width), f"{tiles} cannot cut {width} inputs"
    scale_dims = 0 if scale is None else scale.dim()
    assert scale_dims < 2 or tiles.depth == SCALE_BLOCK, "a step of the loop has one scale"
    partial = out_TO
    if tiles.splits > 1:
        assert num_tokens <= tiles.max_tokens, f"{num_tokens} rows; {tiles.max_tokens} at most"
        assert counters is not None, "splits need counters"
        assert counters.numel() >= num_tiles, f"{num_tiles} counters are needed"
        partial = torch.empty(
            tiles.splits * (2 if gated else 1) * num_tokens * num_outputs,
            dtype=torch.float32,
            device=x_TI.device,
        )
    _skinny_kernel[(num_tiles, tiles.splits)](
        x_TI,
        weight_OI,
        x_TI if x_scale is None else x_scale,
        x_TI if scale is None else scale,
        x_TI if bias_O is None else bias_O,
        out_TO,
        partial,
        x_TI if counters is None else counters,
        x_TI.stride(0),
        out_TO.stride(0),
        num_tokens,
        num_outputs,
        width,
        TOKENS=tiles.max_tokens,
        COLUMNS=tiles.columns,
        DEPTH=tiles.depth,
        SPLITS=tiles.splits,
        WEIGHT_FIRST=tiles.weight_first,
        PREFETCH=tiles.prefetch if is_even and x_TI.device.type != "cpu" else 0,
        LINE=LINE_BYTES.value // weight_OI.element_size(),
        IS_EVEN=is_even,
        SCALE_DIMS=scale_dims,
        HAS_BIAS=bias_O is not None,
        ADDS=adds,
        GATED=gated,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **dependent_launch(x_TI.device),
    )


@triton.jit
def _multiply(
    x,
    w,
    acc,
    x_scale_ptr,
    scale_ptr,
    is_token,
    is_output,
    SCALE_DIMS: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
):
    """Add a step's products; where each block has a scale, they are scaled on the way."""
    if SCALE_DIMS < 2:
        if WEIGHT_FIRST:
            return tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        else:
            return tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    else:
        x_scale = tl.load(x_scale_ptr[:, None], mask=is_token, other=0)
        scale = tl.load(scale_ptr, mask=is_output, other=0)
        if WEIGHT_FIRST:
            return acc + tl.dot(w, tl.trans(x)) * scale[:, None] * tl.trans(x_scale)
        else:
            return acc + tl.dot(x, tl.trans(w)) * x_scale * scale[None, :]


@triton.jit
def _rows(pair, WEIGHT_FIRST: tl.constexpr):
    return tl.trans(pair) if WEIGHT_FIRST else pair


@triton.jit
def _places(tile, num_tokens, num_outputs, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the tokens and outputs of a tile."""
    # Eight tiles of tokens go through all outputs before the next eight: both stay in the cache.
    num_token_tiles = tl.cdiv(num_tokens, TOKENS)
    group = TOKEN_TILES * tl.cdiv(num_outputs, COLUMNS)
    first = tile // group * TOKEN_TILES
    size = tl.minimum(num_token_tiles - first, TOKEN_TILES)
    t = (first + tile % group % size) * TOKENS + tl.arange(0, TOKENS)
    return t, tile % group // size * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _multiply_part(
    x_row,
    row,
    up_offset,
    rows,
    columns,
    x_scale_ptr,
    scale_ptr,
    first,
    part,
    width,
    DEPTH: tl.constexpr,
    IS_EVEN: tl.constexpr,
    SCALE_DIMS: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    GATED: tl.constexpr,
):
    """Return products over the inputs from `first` on: the gates, and what they let through.

    Without gates the first are all there is.
    """
    t, is_token = rows
    o, is_output, num_outputs = columns
    is_token, is_row = is_token[:, None], is_output[:, None]
    i = tl.arange(0, DEPTH)
    if WEIGHT_FIRST:
        acc = tl.zeros((o.shape[0], t.shape[0]), tl.float32)
        up_acc = tl.zeros((o.shape[0], t.shape[0]), tl.float32)
    else:
        acc = tl.zeros((t.shape[0], o.shape[0]), tl.float32)
        up_acc = tl.zeros((t.shape[0], o.shape[0]), tl.float32)
    stride = tl.cdiv(width, SCALE_BLOCK)
    x_scale = x_scale_ptr + t * stride
    scale = scale_ptr + o // SCALE_BLOCK * stride
    up_scale = scale_ptr + (o + num_outputs) // SCALE_BLOCK * stride
    for start in range(0, part, DEPTH):
        is_input = i < part - start
        if IS_EVEN:
            x = tl.load(x_row + start, mask=is_token, other=0.0)
        else:
            x = tl.load(x_row + start, mask=is_token & is_input[None, :], other=0.0)
        w = load_weight(row + start, is_row & is_input[None, :], IS_EVEN)
        g = (first + start) // SCALE_BLOCK
        acc = _multiply(
            x, w, acc, x_scale + g, scale + g, is_token, is_output, SCALE_DIMS, WEIGHT_FIRST
        )
        if GATED:
            w = load_weight(row + up_offset + start, is_row & is_input[None, :], IS_EVEN)
            up_acc = _multiply(
                x,
                w,
                up_acc,
                x_scale + g,
                up_scale + g,
                is_token,
                is_output,
                SCALE_DIMS,
                WEIGHT_FIRST,
            )
    return _rows(acc, WEIGHT_FIRST), _rows(up_acc, WEIGHT_FIRST)


@triton.jit
def _add_parts(
    y,
    up,
    place,
    size,
    mask,
    s,
    counters_ptr,
    tile,
    SPLITS: tl.constexpr,
    GATED: tl.constexpr,
):
    """Leave a part's products to the program that is last, which gets the sums and True."""
    tl.store(place + s * size, y, mask=mask)
    if GATED:
        tl.store(place + (SPLITS + s) * size, up, mask=mask)
    # All threads' parts must be out before one thread says so.
    tl.debug_barrier()
    is_last = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        y = tl.zeros(y.shape, tl.float32)
        for p in range(SPLITS):
            y += tl.load(place + p * size, mask=mask, other=0, cache_modifier=".cg")
        if GATED:
            up = tl.zeros(up.shape, tl.float32)
            for p in range(SPLITS, 2 * SPLITS):
                up += tl.load(place + p * size, mask=mask, other=0, cache_modifier=".cg")
        tl.store(counters_ptr + tile, 0)
    return y, up, is_last


@triton.jit
def _finish(
    y,
    up,
    rows,
    columns,
    x_scale_ptr,
    scale_ptr,
    bias_ptr,
    SCALE_DIMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
):
    """Scale whole rows and columns, add the bias, and apply the gates."""
    t, is_token = rows
    o, is_output, num_outputs = columns
    if SCALE_DIMS == 1:
        row_scale = tl.load(x_scale_ptr + t, mask=is_token, other=0)[:, None]
        y *= row_scale * tl.load(scale_ptr + o, mask=is_output, other=0)[None, :]
        if GATED:
            scale = tl.load(scale_ptr + num_outputs + o, mask=is_output, other=0)
            up *= row_scale * scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=is_output, other=0).to(tl.float32)[None, :]
        if GATED:
            bias = tl.load(bias_ptr + num_outputs + o, mask=is_output, other=0)
            up += bias.to(tl.float32)[None, :]
    return y * tl.sigmoid(y) * up if GATED else y


@triton.jit(do_not_specialize=["num_tokens"])
def _skinny_kernel(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counters_ptr,
    x_stride_t,
    out_stride_t,
    num_tokens,
    num_outputs,
    width,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    SCALE_DIMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute a tile of tokens and outputs, over one part of the inputs."""
    tile = tl.program_id(0)
    s = tl.program_id(1)
    t, o = _places(tile, num_tokens, num_outputs, TOKENS, COLUMNS)
    i = tl.arange(0, DEPTH)
    # In this form the compiler sees that a part starts where 16-byte loads may.
    part = width // (SPLITS * DEPTH) * DEPTH if SPLITS > 1 else width
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = w_ptr + o[:, None].to(tl.int64) * width + s * part
    up_offset = num_outputs.to(tl.int64) * width
    if PREFETCH > 0:
        prefetch_rows(row, PREFETCH, LINE)
        if GATED:
            prefetch_rows(row + up_offset, PREFETCH, LINE)
    if PDL:
        tl.extra.cuda.gdc_wait()
    rows, columns = (t, t < num_tokens), (o, o < num_outputs, num_outputs)
    x_row = x_ptr + t[:, None].to(tl.int64) * x_stride_t + s * part + i[None, :]
    y, up = _multiply_part(
        x_row,
        row + i[None, :],
        up_offset,
        rows,
        columns,
        x_scale_ptr,
        scale_ptr,
        s * part,
        part,
        width,
        DEPTH,
        IS_EVEN,
        SCALE_DIMS,
        WEIGHT_FIRST,
        GATED,
    )
    mask = rows[1][:, None] & columns[1][None, :]
    is_last = True
    if SPLITS > 1:
        place = partial_ptr + t[:, None] * num_outputs + o[None, :]
        size = num_tokens * num_outputs
        y, up, is_last = _add_parts(y, up, place, size, mask, s, counters_ptr, tile, SPLITS, GATED)
    if is_last:
        y = _finish(
            y, up, rows, columns, x_scale_ptr, scale_ptr, bias_ptr, SCALE_DIMS, HAS_BIAS, GATED
        )
        place_out = out_ptr + t[:, None].to(tl.int64) * out_stride_t + o[None, :]
        if ADDS:
            y += tl.load(place_out, mask=mask, other=0).to(tl.float32)
        tl.store(place_out, y.to(out_ptr.dtype.element_ty), mask=mask)
