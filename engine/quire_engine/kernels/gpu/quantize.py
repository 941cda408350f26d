"""8-bit floating point (e4m3) with scales: a number is its 8 bits times its scale.

Legend: T tokens, I inputs, O outputs, G groups of GROUP inputs.

Rows of x get their scale when they are computed, one for a row or one for each GROUP numbers;
weights have theirs for each row, or for each block of GROUP x GROUP numbers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.norm import Norm, norm_warps
from quire_engine.model.fp8 import (
    BLOCK,
    FP8,
    FP8_MAX,
    SCALE,
    SMALLEST_SCALE,
    X_SCALE,
    quantize_by_row,
)

GROUP = BLOCK
"""Numbers of a row of x that share a scale, where a block of the weight does."""


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Rows:
    """Quantized rows of x: numbers (T, I), scales (T,) or (T, G) in float32."""

    numbers: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """A quantized weight: numbers (O, I), scales (O,) or (O / GROUP, I / GROUP) in float32.

    `x_scale`, one number, is what the checkpoint wants rows of x to be divided by; None: their
    scales are found when they are computed.
    """

    numbers: torch.Tensor
    scale: torch.Tensor
    x_scale: torch.Tensor | None = None

    @property
    def per_block(self) -> bool:
        return self.scale.dim() == 2


def quantize_weight(weight_OI: torch.Tensor) -> Fp8Weight:
    """Quantize a weight, with a scale for each of its rows."""
    return Fp8Weight(*quantize_by_row(weight_OI))


def take_weight(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor | Fp8Weight:
    """Take a weight out of a model's weights, with its scales if it is quantized."""
    numbers, scale = weights.pop(name), weights.pop(name + SCALE, None)
    if scale is None:
        return numbers
    return Fp8Weight(numbers, scale, weights.pop(name + X_SCALE, None))


def quantize_rows(
    x_TI: torch.Tensor,
    *,
    norm: Norm | None = None,
    per_group: bool = False,
    static_scale: torch.Tensor | None = None,
) -> Fp8Rows:
    """Quantize rows, or the RMS norm of rows, in one pass.

    The scale is the largest magnitude of a row (or of each GROUP numbers of it) over FP8_MAX, or
    `static_scale`, one number for all, in which case what is out of range is clamped.
    """
    num_tokens, width = x_TI.shape
    assert not per_group or width % GROUP == 0, f"{width} is no multiple of {GROUP}"
    shape = (num_tokens, width // GROUP) if per_group else (num_tokens,)
    numbers = torch.empty((num_tokens, width), dtype=FP8, device=x_TI.device)
    scale = torch.empty(shape, dtype=torch.float32, device=x_TI.device)
    if num_tokens == 0:
        return Fp8Rows(numbers, scale)
    block = triton.next_power_of_2(width)
    _quantize_rows_kernel[(num_tokens,)](
        x_TI,
        x_TI if norm is None else norm.weight_E,
        scale if static_scale is None else static_scale,
        numbers,
        scale,
        x_TI.stride(0),
        0.0 if norm is None else norm.eps,
        WIDTH=width,
        BLOCK=block,
        GROUP=GROUP if per_group else block,
        HAS_NORM=norm is not None,
        IS_STATIC=static_scale is not None,
        LIMIT=FP8_MAX,
        SMALLEST=SMALLEST_SCALE,
        num_warps=norm_warps(block),
        **dependent_launch(x_TI.device),
    )
    return Fp8Rows(numbers, scale)


def quantize_rows_reference(x_TI: torch.Tensor, *, per_group: bool = False) -> Fp8Rows:
    """Return what `quantize_rows` does without norm and static scale."""
    width = x_TI.shape[1]
    groups = x_TI.float().unflatten(1, (-1, GROUP if per_group else width))
    scale = (groups.abs().amax(-1, keepdim=True) / FP8_MAX).clamp_min(SMALLEST_SCALE)
    numbers = (groups / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).flatten(1)
    return Fp8Rows(numbers, scale[..., 0] if per_group else scale[:, 0, 0])


@triton.jit(do_not_specialize=["eps"])
def _quantize_rows_kernel(
    x_ptr,
    norm_ptr,
    static_ptr,
    numbers_ptr,
    scale_ptr,
    x_stride_t,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_STATIC: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Quantize one row."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mask = i < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if HAS_NORM:
        weight = tl.load(norm_ptr + i, mask=mask, other=0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + t * x_stride_t + i, mask=mask, other=0).to(tl.float32)
    if HAS_NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps) * weight
    NUM: tl.constexpr = BLOCK // GROUP
    g = tl.arange(0, NUM)
    groups = tl.reshape(x, (NUM, GROUP))
    if IS_STATIC:
        scale = tl.load(static_ptr) + tl.zeros((NUM,), tl.float32)
    else:
        scale = tl.maximum(tl.max(tl.abs(groups), 1) / LIMIT, SMALLEST)
    numbers = tl.clamp(groups / scale[:, None], -LIMIT, LIMIT)
    numbers = tl.reshape(numbers, (BLOCK,)).to(numbers_ptr.dtype.element_ty)
    tl.store(numbers_ptr + t * WIDTH + i, numbers, mask=mask)
    NUM_REAL: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
    tl.store(scale_ptr + t * NUM_REAL + g, scale, mask=g < NUM_REAL)
