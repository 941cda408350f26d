"""Logits inside sampling kernels: loading them, and searching among float numbers by their bits."""

import triton
import triton.language as tl

CHUNK = 4096
"""Logits of a row that one program looks at."""

LEAST_KEY = tl.constexpr(-0x7F800001)
"""The key of -inf."""


@triton.jit
def load_logits(ptr, mask):
    """Load logits as float32, NaN as +inf; what is masked is -inf."""
    x = tl.load(ptr, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("inf"), x)


@triton.jit
def is_finite(value):
    """Tell whether a number is not infinite (a NaN was loaded as +inf)."""
    return (value < float("inf")) & (value > float("-inf"))


@triton.jit
def best_of(scores, ids):
    """Return the largest score and the lowest id that has it."""
    best = tl.max(scores, 0)
    return best, tl.min(tl.where(scores == best, ids, 0x7FFFFFFF), 0)


@triton.jit
def key_of(value):
    """Return an int32 that orders as the float32 does."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """Return the float32 of a key."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def middle(low, high):
    """Return the key between two keys, rounded down; their difference may overflow."""
    return (low >> 1) + (high >> 1) + (low & high & 1)
