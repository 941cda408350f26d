"""What both attention kernels agree on: the types they multiply, and scores in powers of two."""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
"""Scores are scaled by this, so that their softmax takes exp2, which the GPU has."""

NO_SCORE = tl.constexpr(-1e30)
"""Score of a hidden key: finite, so that rows without any key give no NaN."""

NO_TOP = tl.constexpr(-1e20)
"""Top score of a row that saw no key yet: far above a hidden key's, whose weight is 0 then. Were it
the same, that weight would be 2 to the rounding error of a number as large, which may be anything:
products and differences are fused on a GPU."""

HALF_MAX = tl.constexpr(65504.0)


def dot_dtype(q: torch.Tensor, kv_cache: torch.Tensor) -> tl.dtype:
    """Return the type that a kernel's products take.

    FP8 keys become float16: one instruction for two of them, against three or more for bfloat16.
    Triton's interpreter cannot multiply bfloat16.
    """
    if q.device.type == "cpu":
        return tl.float32
    if kv_cache.dtype.itemsize == 1:
        return tl.float16
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(q.dtype, tl.float32)


@triton.jit
def to_dot_dtype(x, DTYPE: tl.constexpr):
    """Convert queries; what float16 cannot hold is clamped."""
    if tl.float16 == DTYPE and x.dtype != tl.float16:
        x = tl.clamp(x.to(tl.float32), -HALF_MAX, HALF_MAX)
    return x.to(DTYPE)


@triton.jit
def load_lines(pointers, in_head, IS_PADDED: tl.constexpr, DTYPE: tl.constexpr):
    """Load keys or values of whole lines; what pads the head dimension is 0."""
    if not IS_PADDED:
        return tl.load(pointers).to(DTYPE)
    elif pointers.dtype.element_ty.primitive_bitwidth == 8:
        return tl.where(in_head, tl.load(pointers, mask=in_head).to(DTYPE), 0)
    else:
        return tl.load(pointers, mask=in_head, other=0).to(DTYPE)
