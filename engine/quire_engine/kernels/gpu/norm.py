"""RMS norm of rows, with the addition to the residual stream ahead of it.

Legend: T tokens, E hidden size.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """The parameters of an RMS norm."""

    weight_E: torch.Tensor
    eps: float


def add_rms_norm(
    x_TE: torch.Tensor,
    residual_TE: torch.Tensor | None,
    weight_E: torch.Tensor,
    eps: float,
    out_TE: torch.Tensor,
) -> None:
    """Add x to the residual in place, and write the residual's norm; without one, x's norm.

    The sum is rounded to the residual's type before it is normed. `out_TE` may be `x_TE`.
    """
    num_tokens, width = x_TE.shape
    if num_tokens == 0:
        return
    block = triton.next_power_of_2(width)
    _add_rms_norm_kernel[(num_tokens,)](
        x_TE,
        x_TE if residual_TE is None else residual_TE,
        weight_E,
        out_TE,
        x_TE.stride(0),
        x_TE.stride(0) if residual_TE is None else residual_TE.stride(0),
        out_TE.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        HAS_RESIDUAL=residual_TE is not None,
        num_warps=norm_warps(block),
        **dependent_launch(x_TE.device),
    )


def norm_warps(block: int) -> int:
    """Return the warps for a row: eight numbers of 2 bytes per thread is one 16-byte load."""
    return min(max(block // 512, 1), 16)


def add_rms_norm_reference(
    x_TE: torch.Tensor, residual_TE: torch.Tensor | None, weight_E: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (norm, residual) as `add_rms_norm` writes them."""
    total_TE = x_TE if residual_TE is None else x_TE + residual_TE
    total = total_TE.float()
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return (total * scale * weight_E.float()).to(total_TE.dtype), total_TE


@triton.jit(do_not_specialize=["eps"])
def _add_rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride_t,
    residual_stride_t,
    out_stride_t,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Norm one row."""
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    mask = e < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    weight = tl.load(weight_ptr + e, mask=mask, other=0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + t * x_stride_t + e, mask=mask, other=0).to(tl.float32)
    if HAS_RESIDUAL:
        place = residual_ptr + t * residual_stride_t + e
        total = x + tl.load(place, mask=mask, other=0).to(tl.float32)
        rounded = total.to(residual_ptr.dtype.element_ty)
        tl.store(place, rounded, mask=mask)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    out = x * scale * weight
    tl.store(out_ptr + t * out_stride_t + e, out.to(out_ptr.dtype.element_ty), mask=mask)
