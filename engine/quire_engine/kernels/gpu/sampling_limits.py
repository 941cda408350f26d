"""Find what top_k, top_p and min_p leave of each row, by search for the least logit that is kept.

The kept tokens are the first of the row in the order (logit descending, id ascending), so a
`Boundaries` entry says it all: a least logit, and an id from which its equals are left out. The
search bisects the float numbers, which lie in the order of their bits, and needs no sort.

Legend: B batch slots, R rows of the table, V vocabulary.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.sampling_draw import Boundaries, load_logits
from quire_engine.kernels.gpu.sampling_rows import (
    MIN_P_DEPTH,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    line_of,
    load_float,
)

_TILE = 8192
_LEAST_KEY = tl.constexpr(-0x7F800001)
"""The key of -inf."""


def find_boundaries(
    logits_BV: torch.Tensor,
    vocab_size: int,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    boundaries: Boundaries,
) -> None:
    """Write each slot's boundary."""
    _search_kernel[(rows_B.shape[0],)](
        logits_BV,
        table_RW,
        rows_B,
        boundaries.least_B,
        boundaries.cut_B,
        logits_BV.stride(0),
        vocab_size,
        TILE=min(_TILE, triton.next_power_of_2(vocab_size)),
        num_warps=16,
    )


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


@triton.jit
def _row_max(x_ptr, vocab_size, TILE: tl.constexpr):
    ids = tl.arange(0, TILE)
    best = tl.full([TILE], float("-inf"), tl.float32)
    for start in range(0, vocab_size, TILE):
        best = tl.maximum(best, load_logits(x_ptr + start + ids, start + ids < vocab_size))
    return tl.max(best, 0)


@triton.jit
def _above(x_ptr, vocab_size, least, max_x, inverse_temperature, TILE: tl.constexpr):
    """Return how many logits are over `least`, and the sum of their exp((x - max) / T)."""
    ids = tl.arange(0, TILE)
    count = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.float64)
    for start in range(0, vocab_size, TILE):
        x = load_logits(x_ptr + start + ids, start + ids < vocab_size)
        p = tl.exp((x - max_x) * inverse_temperature)
        count += (x > least).to(tl.int32)
        mass += tl.where(x > least, p, 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _count_equal(x_ptr, num_tokens, value, TILE: tl.constexpr):
    """Return how many of the first `num_tokens` logits equal `value`."""
    ids = tl.arange(0, TILE)
    count = tl.zeros([TILE], tl.int32)
    for start in range(0, num_tokens, TILE):
        x = load_logits(x_ptr + start + ids, start + ids < num_tokens)
        count += (x == value).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _search_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    least_ptr,
    cut_ptr,
    logits_stride_b,
    vocab_size,
    TILE: tl.constexpr,
):
    """Find one slot's boundary, with as many passes over the row as it takes."""
    slot = tl.program_id(0)
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    x_ptr = logits_ptr + slot.to(tl.int64) * logits_stride_b
    temperature = load_float(line_ptr, TEMPERATURE)
    top_k = tl.load(line_ptr + TOP_K)
    top_p = load_float(line_ptr, TOP_P)
    depth = load_float(line_ptr, MIN_P_DEPTH)
    least = float("-inf")
    cut = vocab_size
    has_limit = (top_k > 0) | (top_p < 1.0) | (depth > float("-inf"))
    max_x = float("inf")
    if has_limit & (temperature > 0.0):
        max_x = _row_max(x_ptr, vocab_size, TILE)
    if (max_x < float("inf")) & (max_x > float("-inf")):
        scale = 1.0 / temperature
        # Keys in (low, high] may hold the boundary.
        low = tl.maximum(key_of(max_x + depth * temperature) - 1, _LEAST_KEY)
        least = value_of(low + 1)
        num_kept = vocab_size
        if top_k > 0:
            high = key_of(max_x)
            below = low
            while high - 1 > below:
                key = middle(below, high)
                count, mass = _above(x_ptr, vocab_size, value_of(key), max_x, scale, TILE)
                below = tl.where(count < top_k, below, key)
                high = tl.where(count < top_k, key, high)
            least = value_of(high)
            low = high - 1
            count, mass = _above(x_ptr, vocab_size, least, max_x, scale, TILE)
            num_kept = top_k - count
        if top_p < 1.0:
            p = tl.exp(tl.maximum(least - max_x, -1e30) * scale).to(tl.float64)
            count, mass = _above(x_ptr, vocab_size, least, max_x, scale, TILE)
            equal = _count_equal(x_ptr, vocab_size, least, TILE)
            limit = (mass + p * tl.minimum(num_kept, equal).to(tl.float64)) * top_p
            first = least
            high = key_of(max_x)
            while high - 1 > low:
                key = middle(low, high)
                count, mass = _above(x_ptr, vocab_size, value_of(key), max_x, scale, TILE)
                low = tl.where(mass < limit, low, key)
                high = tl.where(mass < limit, key, high)
            least = value_of(high)
            count, mass = _above(x_ptr, vocab_size, least, max_x, scale, TILE)
            p = tl.exp(tl.maximum(least - max_x, -1e30) * scale).to(tl.float64)
            num = tl.ceil(tl.minimum((limit - mass) / tl.maximum(p, 1e-300), 1e9)).to(tl.int32)
            num_kept = tl.where(least > first, num, tl.minimum(num, num_kept))
        if num_kept < _count_equal(x_ptr, vocab_size, least, TILE):
            # The first `cut` tokens hold `num_kept` equals; the first `under` hold fewer.
            under = 0
            while cut - 1 > under:
                to = (under + cut) // 2
                count = _count_equal(x_ptr, to, least, TILE)
                under = tl.where(count < num_kept, to, under)
                cut = tl.where(count < num_kept, cut, to)
    tl.store(least_ptr + slot, least)
    tl.store(cut_ptr + slot, cut)
