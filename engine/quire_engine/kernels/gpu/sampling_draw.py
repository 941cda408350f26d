"""Choose one token per row: the largest logit, or the largest of logit / temperature + noise.

A row is split into chunks, so that few rows fill the GPU too; a second kernel takes the best of
the chunks. Equal scores go to the lowest id.

Legend: B batch slots, R rows of the table, V vocabulary, C chunks of a row.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.sampling_noise import LANE_0, LANE_1, draw_key, gumbel
from quire_engine.kernels.gpu.sampling_rows import (
    POSITION,
    SEED_LANE_0,
    SEED_LANE_1,
    TEMPERATURE,
    line_of,
    load_float,
    load_unsigned,
)
from quire_engine.kernels.gpu.sampling_values import CHUNK, best_of, is_finite, load_logits


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """The best score of each chunk of a row, and its token."""

    scores_BC: torch.Tensor
    ids_BC: torch.Tensor

    @classmethod
    def empty(cls, max_batch: int, vocab_size: int, device: torch.device) -> "Partials":
        shape = (max_batch, triton.cdiv(vocab_size, CHUNK))
        return cls(
            scores_BC=torch.empty(shape, dtype=torch.float32, device=device),
            ids_BC=torch.empty(shape, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Boundaries:
    """What each slot may draw: tokens over `least`, and its equals with an id under `cut`."""

    least_B: torch.Tensor
    cut_B: torch.Tensor

    @classmethod
    def empty(cls, max_batch: int, device: torch.device) -> "Boundaries":
        return cls(
            least_B=torch.empty(max_batch, dtype=torch.float32, device=device),
            cut_B=torch.empty(max_batch, dtype=torch.int32, device=device),
        )


def score_chunks(
    logits_BV: torch.Tensor,
    vocab_size: int,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    boundaries: Boundaries | None,
    partials: Partials,
) -> None:
    """Write the best score of each chunk: of the logits, or of draws within the boundaries.

    A chunk with a NaN or +inf among its logits has the score +inf.
    """
    num_slots = rows_B.shape[0]
    _score_kernel[(num_slots, triton.cdiv(vocab_size, CHUNK))](
        logits_BV,
        table_RW,
        rows_B,
        logits_BV if boundaries is None else boundaries.least_B,
        rows_B if boundaries is None else boundaries.cut_B,
        partials.scores_BC,
        partials.ids_BC,
        logits_BV.stride(0),
        partials.scores_BC.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        IS_RANDOM=boundaries is not None,
        num_warps=4 if boundaries is None else 8,
        **dependent_launch(logits_BV.device),
    )


def pick(
    partials: Partials,
    vocab_size: int,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    tokens_out_B: torch.Tensor,
    is_bad_out_B: torch.Tensor,
) -> None:
    """Write each slot's token, and count its row's position up.

    `is_bad_out_B` becomes 1, and the token 0, where the logits held NaN or +inf, or only -inf.
    """
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    _pick_kernel[(rows_B.shape[0],)](
        partials.scores_BC,
        partials.ids_BC,
        table_RW,
        rows_B,
        tokens_out_B,
        is_bad_out_B,
        partials.scores_BC.stride(0),
        num_chunks,
        CHUNKS=triton.next_power_of_2(num_chunks),
        num_warps=1,
        **dependent_launch(rows_B.device),
    )


@triton.jit
def divided(x, divisor):
    """Return x / divisor as the CPU rounds it; the general division is three times as long."""
    inverse = tl.div_rn(1.0, divisor)
    quotient = x * inverse
    corrected = tl.fma(tl.fma(-quotient, divisor, x), inverse, quotient)
    return tl.where(tl.abs(x) < float("inf"), corrected, x)


@triton.jit
def _score_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    least_ptr,
    cut_ptr,
    scores_ptr,
    ids_ptr,
    logits_stride_b,
    partials_stride_b,
    vocab_size,
    CHUNK: tl.constexpr,
    IS_RANDOM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Score one chunk of one slot."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    chunk = tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = load_logits(logits_ptr + slot.to(tl.int64) * logits_stride_b + ids, ids < vocab_size)
    if IS_RANDOM:
        line_ptr = line_of(table_ptr, rows_ptr, slot)
        temperature = load_float(line_ptr, TEMPERATURE)
        if temperature > 0.0:
            least = tl.load(least_ptr + slot)
            is_kept = (x > least) | ((x == least) & (ids < tl.load(cut_ptr + slot)))
            position = load_unsigned(line_ptr, POSITION)
            key_0 = draw_key(load_unsigned(line_ptr, SEED_LANE_0), position, LANE_0)
            key_1 = draw_key(load_unsigned(line_ptr, SEED_LANE_1), position, LANE_1)
            noise = gumbel(ids.to(tl.uint32), key_0, key_1)
            x = tl.where(is_kept, divided(x, temperature) + noise, float("-inf"))
    score, token = best_of(x, ids)
    tl.store(scores_ptr + slot * partials_stride_b + chunk, score)
    tl.store(ids_ptr + slot * partials_stride_b + chunk, token)


@triton.jit
def _pick_kernel(
    scores_ptr,
    ids_ptr,
    table_ptr,
    rows_ptr,
    tokens_ptr,
    is_bad_ptr,
    partials_stride_b,
    num_chunks,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take the best chunk of one slot."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    mask = chunk < num_chunks
    place = slot * partials_stride_b + chunk
    scores = tl.load(scores_ptr + place, mask=mask, other=float("-inf"))
    score, token = best_of(scores, tl.load(ids_ptr + place, mask=mask, other=0x7FFFFFFF))
    is_bad = is_finite(score) == 0
    token = tl.where(is_bad, 0, token)
    tl.store(tokens_ptr + slot, token)
    tl.store(is_bad_ptr + slot, is_bad.to(tl.int32))
    position_ptr = line_of(table_ptr, rows_ptr, slot) + POSITION
    tl.store(position_ptr, tl.load(position_ptr) + 1)
