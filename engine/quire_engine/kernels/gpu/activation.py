"""silu(gate) * up, of gate and up side by side in one row.

Legend: T tokens, I intermediate size.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional

from quire_engine.kernels.gpu.launch import dependent_launch

BLOCK = 1024


def silu_mul(gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
    """Write silu of a row's first half times its second half."""
    num_tokens, width = out_TI.shape
    if num_tokens == 0:
        return
    _silu_mul_kernel[(num_tokens, triton.cdiv(width, BLOCK))](
        gate_up_T2I,
        out_TI,
        gate_up_T2I.stride(0),
        out_TI.stride(0),
        width,
        BLOCK=BLOCK,
        num_warps=4,
        **dependent_launch(out_TI.device),
    )


def silu_mul_reference(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """Return what `silu_mul` writes: rounded once, at the end."""
    gate_TI, up_TI = gate_up_T2I.float().chunk(2, -1)
    return (functional.silu(gate_TI) * up_TI).to(gate_up_T2I.dtype)


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr,
    out_ptr,
    gate_up_stride_t,
    out_stride_t,
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write one block of one row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < width
    row = gate_up_ptr + t * gate_up_stride_t
    gate = tl.load(row + i, mask=mask, other=0).to(tl.float32)
    up = tl.load(row + width + i, mask=mask, other=0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + t * out_stride_t + i, out.to(out_ptr.dtype.element_ty), mask=mask)
