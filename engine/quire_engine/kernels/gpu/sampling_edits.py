"""Change logits before the temperature: constraints and penalties, on a float32 copy of them.

Legend: B batch slots, R rows of the table, V vocabulary, C chunks of a row, W words of 32 bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.sampling_rows import (
    EDITS,
    FREQUENCY,
    HAS_ALLOWED,
    HAS_PENALTIES,
    HAS_STOPS,
    MIN_TOKENS,
    POSITION,
    PRESENCE,
    REPETITION,
    line_of,
    load_float,
)
from quire_engine.kernels.gpu.sampling_values import CHUNK, load_logits

MAX_COUNT = tl.constexpr(0x3FFF)
"""Occurrences of one token in one output are counted up to here."""
IS_IN_PROMPT = tl.constexpr(0x4000)

_LARGEST = tl.constexpr(1e30)
"""A tiny repetition penalty must not make a logit infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class EditTables:
    """What rows ask for, beside their line: sets of tokens as bits, and counts of tokens."""

    allowed_RW: torch.Tensor
    stops_RW: torch.Tensor
    counts_RV: torch.Tensor
    """int16: occurrences in the output, and the bit IS_IN_PROMPT."""

    @classmethod
    def empty(cls, num_rows: int, vocab_size: int, device: torch.device) -> "EditTables":
        def zeros(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(num_rows, width, dtype=dtype, device=device)

        num_words = triton.cdiv(vocab_size, 32)
        return cls(
            allowed_RW=zeros(num_words, torch.int32),
            stops_RW=zeros(num_words, torch.int32),
            counts_RV=zeros(vocab_size, torch.int16),
        )


def mask_logits(
    logits_BV: torch.Tensor,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    tables: EditTables,
    out_BV: torch.Tensor,
) -> None:
    """Copy logits without what is not allowed, and without stops before `min_tokens`.

    NaN and +inf become +inf even where they are masked: they must be noticed.
    """
    num_slots, vocab_size = out_BV.shape
    _mask_kernel[(num_slots, triton.cdiv(vocab_size, CHUNK))](
        logits_BV,
        table_RW,
        rows_B,
        tables.allowed_RW,
        tables.stops_RW,
        out_BV,
        logits_BV.stride(0),
        tables.allowed_RW.stride(0),
        out_BV.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        num_warps=4,
        **dependent_launch(logits_BV.device),
    )


def penalise(
    x_BV: torch.Tensor,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    tables: EditTables,
    max_BC: torch.Tensor,
) -> None:
    """Apply repetition (prompt and output), then frequency and presence (output) penalties.

    Also writes the largest logit of each chunk, for `lift_contradictions`.
    """
    num_slots, vocab_size = x_BV.shape
    _penalise_kernel[(num_slots, triton.cdiv(vocab_size, CHUNK))](
        x_BV,
        table_RW,
        rows_B,
        tables.counts_RV,
        max_BC,
        x_BV.stride(0),
        tables.counts_RV.stride(0),
        max_BC.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        num_warps=4,
        **dependent_launch(x_BV.device),
    )


def lift_contradictions(
    x_BV: torch.Tensor,
    logits_BV: torch.Tensor,
    table_RW: torch.Tensor,
    rows_B: torch.Tensor,
    tables: EditTables,
    max_BC: torch.Tensor,
) -> None:
    """Where the edits exclude every token, keep `allowed_token_ids` alone, as on the CPU."""
    num_slots, vocab_size = x_BV.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    _lift_kernel[(num_slots, num_chunks)](
        x_BV,
        logits_BV,
        table_RW,
        rows_B,
        tables.allowed_RW,
        max_BC,
        x_BV.stride(0),
        logits_BV.stride(0),
        tables.allowed_RW.stride(0),
        max_BC.stride(0),
        vocab_size,
        num_chunks,
        CHUNK=CHUNK,
        CHUNKS=triton.next_power_of_2(num_chunks),
        num_warps=4,
        **dependent_launch(x_BV.device),
    )


def count_tokens(
    tokens_B: torch.Tensor, table_RW: torch.Tensor, rows_B: torch.Tensor, tables: EditTables
) -> None:
    """Count each slot's new token, where its row has penalties."""
    _count_kernel[(rows_B.shape[0],)](
        tokens_B,
        table_RW,
        rows_B,
        tables.counts_RV,
        tables.counts_RV.stride(0),
        num_warps=1,
        **dependent_launch(rows_B.device),
    )


@triton.jit
def _has_bit(words_ptr, ids, mask):
    words = tl.load(words_ptr + ids // 32, mask=mask, other=0)
    return ((words >> (ids % 32)) & 1) != 0


@triton.jit
def _mask_kernel(
    logits_ptr,
    table_ptr,
    rows_ptr,
    allowed_ptr,
    stops_ptr,
    out_ptr,
    logits_stride_b,
    words_stride_r,
    out_stride_b,
    vocab_size,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copy and mask one chunk of one slot."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = ids < vocab_size
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    edits = tl.load(line_ptr + EDITS)
    words = tl.load(rows_ptr + slot).to(tl.int64) * words_stride_r
    raw = load_logits(logits_ptr + slot * logits_stride_b + ids, mask)
    x = raw
    if (edits & HAS_ALLOWED) != 0:
        x = tl.where(_has_bit(allowed_ptr + words, ids, mask), x, float("-inf"))
    is_early = tl.load(line_ptr + POSITION) < tl.load(line_ptr + MIN_TOKENS)
    if ((edits & HAS_STOPS) != 0) & is_early:
        x = tl.where(_has_bit(stops_ptr + words, ids, mask), float("-inf"), x)
    x = tl.where(raw == float("inf"), raw, x)
    tl.store(out_ptr + slot * out_stride_b + ids, x, mask=mask)


@triton.jit
def _penalise_kernel(
    x_ptr,
    table_ptr,
    rows_ptr,
    counts_ptr,
    max_ptr,
    x_stride_b,
    counts_stride_r,
    max_stride_b,
    vocab_size,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Penalise one chunk of one slot."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    mask = ids < vocab_size
    line_ptr = line_of(table_ptr, rows_ptr, slot)
    place = x_ptr + slot * x_stride_b + ids
    x = load_logits(place, mask)
    if (tl.load(line_ptr + EDITS) & HAS_PENALTIES) != 0:
        row = tl.load(rows_ptr + slot).to(tl.int64)
        words = tl.load(counts_ptr + row * counts_stride_r + ids, mask=mask, other=0).to(tl.int32)
        count = (words & MAX_COUNT).to(tl.float32)
        repetition = load_float(line_ptr, REPETITION)
        repeated = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition)
        repeated -= load_float(line_ptr, FREQUENCY) * count
        repeated -= tl.where(count > 0.0, load_float(line_ptr, PRESENCE), 0.0)
        is_changed = (words != 0) & (x < float("inf"))
        x = tl.where(is_changed, tl.minimum(repeated, _LARGEST), x)
        tl.store(place, x, mask=mask & is_changed)
    tl.store(max_ptr + slot * max_stride_b + chunk, tl.max(x, 0))


@triton.jit
def _lift_kernel(
    x_ptr,
    logits_ptr,
    table_ptr,
    rows_ptr,
    allowed_ptr,
    max_ptr,
    x_stride_b,
    logits_stride_b,
    words_stride_r,
    max_stride_b,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take one chunk of one slot back, if the whole slot is excluded."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    place = max_ptr + slot * max_stride_b + chunk
    best = tl.max(tl.load(place, mask=chunk < num_chunks, other=float("-inf")), 0)
    if best == float("-inf"):
        ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        mask = ids < vocab_size
        x = load_logits(logits_ptr + slot * logits_stride_b + ids, mask)
        if (tl.load(line_of(table_ptr, rows_ptr, slot) + EDITS) & HAS_ALLOWED) != 0:
            words = tl.load(rows_ptr + slot).to(tl.int64) * words_stride_r
            x = tl.where(_has_bit(allowed_ptr + words, ids, mask), x, float("-inf"))
        tl.store(x_ptr + slot * x_stride_b + ids, x, mask=mask)


@triton.jit
def _count_kernel(tokens_ptr, table_ptr, rows_ptr, counts_ptr, counts_stride_r, PDL: tl.constexpr):
    """Count one slot's token."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    if (tl.load(line_of(table_ptr, rows_ptr, slot) + EDITS) & HAS_PENALTIES) != 0:
        row = tl.load(rows_ptr + slot).to(tl.int64)
        place = counts_ptr + row * counts_stride_r + tl.load(tokens_ptr + slot)
        words = tl.load(place).to(tl.int32)
        count = tl.minimum((words & MAX_COUNT) + 1, MAX_COUNT)
        tl.store(place, ((words & IS_IN_PROMPT) | count).to(tl.int16))
