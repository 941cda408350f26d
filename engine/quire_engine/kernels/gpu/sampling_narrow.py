"""Narrow the logits down to the few among which the boundary of top_k or top_p lies.

The boundary is the least logit that is kept. Each round weighs what lies over a few pivots, for all
rows and over the whole GPU: it counts it for top_k, and sums its probability for top_p. The next
round's pivots divide the interval that is left. What remains is gathered, so that the exact search
(`sampling_limits`) looks at thousands of logits, not at the vocabulary.

Legend: B batch slots, R rows of the table, V vocabulary, C chunks of a row, M pivots, N rounds.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.sampling_rows import (
    MIN_P_DEPTH,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    line_of,
    load_float,
)
from quire_engine.kernels.gpu.sampling_values import (
    CHUNK,
    LEAST_KEY,
    is_finite,
    key_of,
    load_logits,
    value_of,
)

NUM_PIVOTS = 8
NUM_ROUNDS = 3
MAX_CANDIDATES = 4096
"""A row with more left after the rounds, for its logits are mostly equal, is searched whole."""

STATE_WORDS = tl.constexpr(16)
LOW = tl.constexpr(0)
"""Not over the boundary: what lies over it weighs at least the limit, or it is min_p's."""
HIGH = tl.constexpr(1)
"""At or over the boundary: what lies over it weighs less than the limit."""
WEIGHT = tl.constexpr(2)
"""Of what lies over HIGH."""
LIMIT = tl.constexpr(3)
"""top_k, or top_p of the row's mass."""
PIVOT_WORDS = tl.constexpr(8)
"""Where the pivots of the round begin."""

_FIRST_DEPTH = tl.constexpr(0.1)
_DEPTH_FACTOR = tl.constexpr(2.5)
_MAX_SPAN = tl.constexpr(64.0)


@dataclass(frozen=True, slots=True, eq=False)
class Narrowing:
    """Memory that the rounds share, and what they leave for the search."""

    max_BC: torch.Tensor
    weights_NBMC: torch.Tensor
    states_NB: torch.Tensor
    num_candidates_B: torch.Tensor
    candidates_BK: torch.Tensor
    candidate_ids_BK: torch.Tensor

    @classmethod
    def empty(cls, max_batch: int, vocab_size: int, device: torch.device) -> "Narrowing":
        def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        chunks = triton.cdiv(vocab_size, CHUNK)
        return cls(
            max_BC=tensor(max_batch, chunks),
            weights_NBMC=tensor(NUM_ROUNDS, max_batch, NUM_PIVOTS, chunks),
            states_NB=tensor(NUM_ROUNDS + 1, max_batch, STATE_WORDS.value),
            num_candidates_B=tensor(max_batch, dtype=torch.int32),
            candidates_BK=tensor(max_batch, MAX_CANDIDATES),
            candidate_ids_BK=tensor(max_batch, MAX_CANDIDATES, dtype=torch.int32),
        )


def narrow(
    logits_BV: torch.Tensor,
    vocab_size: int,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    memory: Narrowing,
) -> None:
    """Leave the last state and the candidates of each row that has top_k or top_p in `memory`."""
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    grid = (rows_B.shape[0], num_chunks)
    chunks = triton.next_power_of_2(num_chunks)
    launch = dependent_launch(logits_BV.device)
    _max_kernel[grid](
        logits_BV,
        table_RW,
        rows_B,
        memory.max_BC,
        memory.num_candidates_B,
        logits_BV.stride(0),
        memory.max_BC.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        num_warps=4,
        **launch,
    )
    for turn in range(NUM_ROUNDS + 1):
        _round_kernel[grid](
            logits_BV,
            table_RW,
            rows_B,
            memory.max_BC,
            memory.weights_NBMC[max(turn - 1, 0)],
            memory.weights_NBMC[min(turn, NUM_ROUNDS - 1)],
            memory.states_NB[max(turn - 1, 0)],
            memory.states_NB[turn],
            memory.num_candidates_B,
            memory.candidates_BK,
            memory.candidate_ids_BK,
            logits_BV.stride(0),
            vocab_size,
            num_chunks,
            memory.max_BC.stride(0),
            MAX_CANDIDATES=MAX_CANDIDATES,
            CHUNK=CHUNK,
            CHUNKS=chunks,
            PIVOTS=NUM_PIVOTS,
            TURN=min(turn, 2),
            IS_LAST=turn == NUM_ROUNDS,
            num_warps=8 if turn == NUM_ROUNDS else 4,
            **launch,
        )


@triton.jit
def is_searched(line_ptr):
    """Tell whether the row needs a boundary that only a search can find."""
    has_limit = (tl.load(line_ptr + TOP_K) > 0) | (load_float(line_ptr, TOP_P) < 1.0)
    return has_limit & (load_float(line_ptr, TEMPERATURE) > 0.0)


@triton.jit
def floor_of(line_ptr, max_x):
    """Return the largest number that min_p forbids; -inf is always forbidden."""
    least = max_x + load_float(line_ptr, MIN_P_DEPTH) * load_float(line_ptr, TEMPERATURE)
    return value_of(tl.maximum(key_of(least) - 1, LEAST_KEY))


@triton.jit
def _max_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    max_ptr,
    num_candidates_ptr,
    logits_stride_b,
    max_stride_b,
    vocab_size,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Find the largest logit of one chunk of one slot."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    chunk = tl.program_id(1)
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    has_depth = load_float(line_ptr, MIN_P_DEPTH) > float("-inf")
    if is_searched(line_ptr) | has_depth:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = load_logits(logits_ptr + slot.to(tl.int64) * logits_stride_b + ids, ids < vocab_size)
        tl.store(max_ptr + slot * max_stride_b + chunk, tl.max(x, 0))
        if chunk == 0:
            tl.store(num_candidates_ptr + slot, 0)


@triton.jit
def row_max(max_ptr, slot, max_stride_b, num_chunks, CHUNKS: tl.constexpr):
    """Return the largest logit of a slot, from those of its chunks."""
    chunk = tl.arange(0, CHUNKS)
    place = max_ptr + slot * max_stride_b + chunk
    return tl.max(tl.load(place, mask=chunk < num_chunks, other=float("-inf")), 0)


@triton.jit
def _first_state(line_ptr, max_x):
    """Return low, high, weight and limit before anything was weighed; the limit is not known."""
    return floor_of(line_ptr, max_x), max_x, 0.0, 0.0


@triton.jit
def _next_state(
    line_ptr,
    state_ptr,
    weights_ptr,
    stride_m,
    num_chunks,
    TURN: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return low, high, weight and limit, from the state and the weights of the last round."""
    m = tl.arange(0, PIVOTS)
    c = tl.arange(0, CHUNKS)
    place = weights_ptr + m[:, None] * stride_m + c[None, :]
    weights = tl.sum(tl.load(place, mask=c[None, :] < num_chunks, other=0.0), 1)
    pivots = tl.load(state_ptr + PIVOT_WORDS + m)
    limit = tl.load(state_ptr + LIMIT)
    if TURN == 1:
        # The last pivot of the first round is the floor: over it lies all that min_p allows.
        top_k = tl.load(line_ptr + TOP_K)
        mass = load_float(line_ptr, TOP_P) * tl.max(weights, 0)
        limit = tl.where(top_k > 0, top_k.to(tl.float32), mass)
    is_under = weights < limit
    low = tl.max(tl.where(is_under, tl.load(state_ptr + LOW), pivots), 0)
    high = tl.min(tl.where(is_under, pivots, tl.load(state_ptr + HIGH)), 0)
    weight = tl.max(tl.where(is_under, weights, tl.load(state_ptr + WEIGHT)), 0)
    return low, high, weight, limit


@triton.jit
def _pivot(
    low, high, max_x, temperature, m: tl.constexpr, TURN: tl.constexpr, PIVOTS: tl.constexpr
):
    """Return a pivot of [low, high): by depth under the maximum at first, then evenly spaced."""
    if TURN == 0:
        pivot = low
        if m < PIVOTS - 1:
            pivot = tl.maximum(max_x - temperature * (_FIRST_DEPTH * _DEPTH_FACTOR**m), low)
    else:
        start = tl.maximum(low, tl.maximum(high, -1e30) - _MAX_SPAN * temperature)
        pivot = tl.minimum(start + (high - start) * ((m + 1) / (PIVOTS + 1)), high)
    return pivot


@triton.jit
def _gather(
    x,
    ids,
    low,
    high,
    num_candidates_ptr,
    candidates_ptr,
    candidate_ids_ptr,
    slot,
    MAX_CANDIDATES: tl.constexpr,
):
    """Append the logits in (low, high] to the slot's candidates, as far as they have room."""
    is_candidate = (x > low) & (x <= high)
    taken = is_candidate.to(tl.int32)
    num = tl.sum(taken, 0)
    if num > 0:
        place = tl.atomic_add(num_candidates_ptr + slot, num) + tl.cumsum(taken, 0) - 1
        mask = is_candidate & (place < MAX_CANDIDATES)
        place = slot.to(tl.int64) * MAX_CANDIDATES + place
        tl.store(candidates_ptr + place, x, mask=mask)
        tl.store(candidate_ids_ptr + place, ids, mask=mask)


@triton.jit
def _store_state(state_ptr, low, high, weight, limit):
    tl.store(state_ptr + LOW, low)
    tl.store(state_ptr + HIGH, high)
    tl.store(state_ptr + WEIGHT, weight)
    tl.store(state_ptr + LIMIT, limit)


@triton.jit
def _round_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    max_ptr,
    weights_ptr,
    next_weights_ptr,
    state_ptr,
    next_state_ptr,
    num_candidates_ptr,
    candidates_ptr,
    candidate_ids_ptr,
    logits_stride_b,
    vocab_size,
    num_chunks,
    max_stride_b,
    MAX_CANDIDATES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
    TURN: tl.constexpr,
    IS_LAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Use the last round's weights, then weigh one chunk of one slot; or gather, if it is last."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    chunk = tl.program_id(1)
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    max_x = float("inf")
    if is_searched(line_ptr):
        max_x = row_max(max_ptr, slot, max_stride_b, num_chunks, CHUNKS)
    if is_finite(max_x):
        weights_place = slot * PIVOTS * max_stride_b
        next_state_ptr += slot * STATE_WORDS
        if TURN == 0:
            low, high, weight, limit = _first_state(line_ptr, max_x)
        else:
            low, high, weight, limit = _next_state(
                line_ptr, state_ptr + slot * STATE_WORDS, weights_ptr + weights_place,
                max_stride_b, num_chunks, TURN, CHUNKS, PIVOTS,
            )  # fmt: skip
        if chunk == 0:
            _store_state(next_state_ptr, low, high, weight, limit)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x_ptr = logits_ptr + slot.to(tl.int64) * logits_stride_b
        x = load_logits(x_ptr + ids, ids < vocab_size)
        temperature = load_float(line_ptr, TEMPERATURE)
        top_k = tl.load(line_ptr + TOP_K)
        if IS_LAST:
            # With both limits, top_p needs the mass of all that top_k keeps.
            has_both = (top_k > 0) & (load_float(line_ptr, TOP_P) < 1.0)
            _gather(
                x,
                ids,
                low,
                tl.where(has_both, max_x, high),
                num_candidates_ptr,
                candidates_ptr,
                candidate_ids_ptr,
                slot,
                MAX_CANDIDATES,
            )
        else:
            p = tl.exp((x - max_x) * (1.0 / temperature))
            p = tl.where(top_k > 0, 1.0, p)
            next_weights_ptr += weights_place + chunk
            for m in tl.static_range(PIVOTS):
                pivot = _pivot(low, high, max_x, temperature, m, TURN, PIVOTS)
                over = tl.sum(tl.where(x > pivot, p, 0.0), 0)
                tl.store(next_weights_ptr + m * max_stride_b, over)
                if chunk == 0:
                    tl.store(next_state_ptr + PIVOT_WORDS + m, pivot)
