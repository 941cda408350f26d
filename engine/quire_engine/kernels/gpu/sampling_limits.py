"""Find what top_k, top_p and min_p leave of each row: the least logit that is kept.

The kept tokens are the first of the row in the order (logit descending, id ascending), so a
`Boundaries` entry says it all: a least logit, and an id from which its equals are left out. The
search bisects the float numbers, which lie in the order of their bits, and needs no sort. It looks
at the candidates that `sampling_narrow` left, or at the whole row where they are too many.

Legend: B batch slots, R rows of the table, V vocabulary.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.sampling_draw import Boundaries
from quire_engine.kernels.gpu.sampling_narrow import (
    HIGH,
    LIMIT,
    LOW,
    MAX_CANDIDATES,
    NUM_ROUNDS,
    STATE_WORDS,
    WEIGHT,
    Narrowing,
    floor_of,
    is_searched,
    narrow,
    row_max,
)
from quire_engine.kernels.gpu.sampling_rows import (
    MIN_P_DEPTH,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    line_of,
    load_float,
)
from quire_engine.kernels.gpu.sampling_values import (
    is_finite,
    key_of,
    load_logits,
    middle,
    value_of,
)

_TILE = 4096


def find_boundaries(
    logits_BV: torch.Tensor,
    vocab_size: int,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    memory: Narrowing,
    boundaries: Boundaries,
) -> None:
    """Write each slot's boundary."""
    narrow(logits_BV, vocab_size, table_RW, rows_B, memory)
    num_chunks = memory.max_BC.shape[1]
    _search_kernel[(rows_B.shape[0],)](
        logits_BV,
        table_RW,
        rows_B,
        memory.max_BC,
        memory.states_NB[NUM_ROUNDS],
        memory.num_candidates_B,
        memory.candidates_BK,
        memory.candidate_ids_BK,
        boundaries.least_B,
        boundaries.cut_B,
        logits_BV.stride(0),
        vocab_size,
        num_chunks,
        memory.max_BC.stride(0),
        MAX_CANDIDATES=MAX_CANDIDATES,
        CHUNKS=triton.next_power_of_2(num_chunks),
        TILE=_TILE,
        num_warps=16,
        **dependent_launch(logits_BV.device),
    )


@triton.jit
def _over(x_ptr, num, least, max_x, scale, TILE: tl.constexpr):
    """Return how many of `num` logits are over `least`, and their sum of exp((x - max) * scale)."""
    ids = tl.arange(0, TILE)
    count = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.float64)
    for start in range(0, num, TILE):
        x = load_logits(x_ptr + start + ids, start + ids < num)
        p = tl.exp((x - max_x) * scale)
        count += (x > least).to(tl.int32)
        mass += tl.where(x > least, p, 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _equal(x_ptr, ids_ptr, num, value, end, HAS_IDS: tl.constexpr, TILE: tl.constexpr):
    """Return how many logits equal `value` and have an id under `end`."""
    lane = tl.arange(0, TILE)
    count = tl.zeros([TILE], tl.int32)
    for start in range(0, num, TILE):
        mask = start + lane < num
        ids = start + lane
        if HAS_IDS:
            ids = tl.load(ids_ptr + start + lane, mask=mask, other=0)
        is_equal = load_logits(x_ptr + start + lane, mask) == value
        count += (is_equal & (ids < end)).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _boundary(
    x_ptr,
    ids_ptr,
    num,
    vocab_size,
    line_ptr,
    state_ptr,
    over_weight,
    max_x,
    HAS_IDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the boundary: its logit, and the id from which its equals are left out.

    Of the row, `num` logits are given; those that are not weigh `over_weight` and are kept, or are
    under the state's LOW.
    """
    top_k = tl.load(line_ptr + TOP_K)
    top_p = load_float(line_ptr, TOP_P)
    scale = 1.0 / load_float(line_ptr, TEMPERATURE)
    floor = tl.load(state_ptr + LOW)
    low = key_of(floor)
    high = key_of(tl.load(state_ptr + HIGH))
    limit = tl.load(state_ptr + LIMIT).to(tl.float64)
    num_kept = 0
    if top_k > 0:
        over = over_weight.to(tl.int32)
        while high - 1 > low:
            key = middle(low, high)
            count, mass = _over(x_ptr, num, value_of(key), max_x, scale, TILE)
            is_under = over + count < top_k
            low = tl.where(is_under, low, key)
            high = tl.where(is_under, key, high)
        if value_of(high) > floor:
            count, mass = _over(x_ptr, num, value_of(high), max_x, scale, TILE)
            num_kept = top_k - over - count
        if top_p < 1.0:
            least = value_of(high)
            num_equal = _equal(x_ptr, ids_ptr, num, least, vocab_size, HAS_IDS, TILE)
            p = tl.exp(tl.maximum(least - max_x, -1e30) * scale).to(tl.float64)
            count, mass = _over(x_ptr, num, least, max_x, scale, TILE)
            mass += p * tl.minimum(num_kept, num_equal).to(tl.float64)
            limit = top_p.to(tl.float64) * mass
            low = high - 1
            high = key_of(max_x)
    if top_p < 1.0:
        first = low + 1
        while high - 1 > low:
            key = middle(low, high)
            count, mass = _over(x_ptr, num, value_of(key), max_x, scale, TILE)
            is_under = over_weight + mass < limit
            low = tl.where(is_under, low, key)
            high = tl.where(is_under, key, high)
        least = value_of(high)
        if least > floor:
            count, mass = _over(x_ptr, num, least, max_x, scale, TILE)
            p = tl.exp(tl.maximum(least - max_x, -1e30) * scale).to(tl.float64)
            fitting = (limit - over_weight - mass) / tl.maximum(p, 1e-300)
            num_fitting = tl.ceil(tl.minimum(fitting, 1e9)).to(tl.int32)
            is_shared = (top_k > 0) & (high == first)
            num_kept = tl.where(is_shared, tl.minimum(num_fitting, num_kept), num_fitting)
    least = value_of(high)
    cut = vocab_size
    if num_kept < _equal(x_ptr, ids_ptr, num, least, vocab_size, HAS_IDS, TILE):
        # Ids under `cut` hold `num_kept` equals; ids under `less` hold fewer.
        less = 0
        while cut - 1 > less:
            end = (less + cut) // 2
            is_under = _equal(x_ptr, ids_ptr, num, least, end, HAS_IDS, TILE) < num_kept
            less = tl.where(is_under, end, less)
            cut = tl.where(is_under, cut, end)
    return least, cut


@triton.jit
def _search_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    max_ptr,
    state_ptr,
    num_candidates_ptr,
    candidates_ptr,
    candidate_ids_ptr,
    least_ptr,
    cut_ptr,
    logits_stride_b,
    vocab_size,
    num_chunks,
    max_stride_b,
    MAX_CANDIDATES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Find one slot's boundary."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    has_search = is_searched(line_ptr)
    least = float("-inf")
    cut = vocab_size
    max_x = float("inf")
    if has_search | (load_float(line_ptr, MIN_P_DEPTH) > float("-inf")):
        max_x = row_max(max_ptr, slot, max_stride_b, num_chunks, CHUNKS)
    if is_finite(max_x):
        if has_search:
            state_ptr += slot * STATE_WORDS
            num = tl.load(num_candidates_ptr + slot)
            # With both limits the candidates begin at the maximum, as the whole row does.
            has_all = (tl.load(line_ptr + TOP_K) > 0) & (load_float(line_ptr, TOP_P) < 1.0)
            has_all |= num > MAX_CANDIDATES
            over_weight = tl.where(has_all, 0.0, tl.load(state_ptr + WEIGHT))
            if num <= MAX_CANDIDATES:
                place = slot.to(tl.int64) * MAX_CANDIDATES
                least, cut = _boundary(
                    candidates_ptr + place,
                    candidate_ids_ptr + place,
                    num,
                    vocab_size,
                    line_ptr,
                    state_ptr,
                    over_weight,
                    max_x,
                    True,
                    TILE,
                )
            else:
                least, cut = _boundary(
                    logits_ptr + slot.to(tl.int64) * logits_stride_b,
                    candidate_ids_ptr,
                    vocab_size,
                    vocab_size,
                    line_ptr,
                    state_ptr,
                    over_weight,
                    max_x,
                    False,
                    TILE,
                )
        else:
            least = floor_of(line_ptr, max_x)
            cut = 0
    tl.store(least_ptr + slot, least)
    tl.store(cut_ptr + slot, cut)
