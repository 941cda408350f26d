"""Small kernels around a step: state of live rows in, token ids and slots out, samples back.

Legend: R rows of live sequences, L positions, M blocks of a sequence, B batch slots, T tokens,
G segments.

All of them read what the step's staging copy brought, so none may start before it has ended.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

SEGMENT_BLOCKS = (16, 128, 1024)
TOKEN_BLOCKS = (1, 16, 256)
"""Few, since each is a kernel to compile."""
COMMIT_BLOCK = 256


def scatter_segments(
    target_RL: torch.Tensor, source: torch.Tensor, segments_G4: torch.Tensor, max_len: int
) -> None:
    """Copy stretches of `source` into rows: segment (row, first position, length, source offset).

    All int32; `max_len` is the length of the longest segment, known to the host.
    """
    num_segments = segments_G4.shape[0]
    if num_segments == 0:
        return
    block = _block_for(max_len, SEGMENT_BLOCKS)
    _scatter_kernel[(num_segments, triton.cdiv(max_len, block))](
        target_RL, source, segments_G4, target_RL.stride(0), BLOCK=block, num_warps=4
    )


def prepare_tokens(
    rows_B: torch.Tensor,
    first_lines_B: torch.Tensor,
    query_lens_B: torch.Tensor,
    seq_lens_B: torch.Tensor,
    tokens_RL: torch.Tensor,
    block_table_RM: torch.Tensor,
    *,
    block_size: int,
    max_query_len: int,
    token_ids_T: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
) -> None:
    """Write id, position and cache slot of each token: the last `query_lens` of `seq_lens`.

    A batch slot without a sequence has length 0; its token has id 0, position 0 and slot -1.
    """
    (batch_size,) = rows_B.shape
    block = _block_for(max_query_len, TOKEN_BLOCKS)
    _prepare_kernel[(batch_size, triton.cdiv(max_query_len, block))](
        rows_B,
        first_lines_B,
        query_lens_B,
        seq_lens_B,
        tokens_RL,
        block_table_RM,
        token_ids_T,
        positions_T,
        slots_T,
        tokens_RL.stride(0),
        block_table_RM.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK=block,
        num_warps=1 if block <= 64 else 4,
    )


def commit_tokens(
    rows_B: torch.Tensor,
    seq_lens_B: torch.Tensor,
    sampled_B: torch.Tensor,
    tokens_RL: torch.Tensor,
) -> None:
    """Append each sampled token to its row; slots of length 0 are padding."""
    (batch_size,) = rows_B.shape
    _commit_kernel[(triton.cdiv(batch_size, COMMIT_BLOCK),)](
        rows_B,
        seq_lens_B,
        sampled_B,
        tokens_RL,
        tokens_RL.stride(0),
        batch_size,
        BLOCK=COMMIT_BLOCK,
        num_warps=4,
    )


def _block_for(length: int, blocks: Sequence[int]) -> int:
    return next((block for block in blocks if block >= length), blocks[-1])


@triton.jit
def _scatter_kernel(target_ptr, source_ptr, segments_ptr, stride_r, BLOCK: tl.constexpr):
    """Copy one block of one segment."""
    segment = segments_ptr + tl.program_id(0) * 4
    row = tl.load(segment).to(tl.int64)
    first = tl.load(segment + 1)
    length = tl.load(segment + 2)
    source = tl.load(segment + 3)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source_ptr + source + i, mask=i < length, other=0)
    tl.store(target_ptr + row * stride_r + first + i, values, mask=i < length)


@triton.jit
def _prepare_kernel(
    rows_ptr,
    first_lines_ptr,
    query_lens_ptr,
    seq_lens_ptr,
    tokens_ptr,
    table_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    tokens_stride_r,
    table_stride_r,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare one block of the tokens of one batch slot."""
    b = tl.program_id(0)
    row = tl.load(rows_ptr + b).to(tl.int64)
    line = tl.load(first_lines_ptr + b)
    num_queries = tl.load(query_lens_ptr + b)
    seq_len = tl.load(seq_lens_ptr + b)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_queries
    is_real = i < tl.where(seq_len > 0, num_queries, 0)
    position = tl.where(seq_len > 0, seq_len - num_queries + i, 0)
    token = tl.load(tokens_ptr + row * tokens_stride_r + position, mask=is_real, other=0)
    block = tl.load(
        table_ptr + row * table_stride_r + position // BLOCK_SIZE, mask=is_real, other=0
    )
    slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    slot = tl.where(is_real, slot, -1)
    tl.store(token_ids_ptr + line + i, token, mask=mask)
    tl.store(positions_ptr + line + i, position, mask=mask)
    tl.store(slots_ptr + line + i, slot, mask=mask)


@triton.jit
def _commit_kernel(
    rows_ptr, seq_lens_ptr, sampled_ptr, tokens_ptr, stride_r, batch_size, BLOCK: tl.constexpr
):
    """Append the tokens of one block of batch slots."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = b < batch_size
    row = tl.load(rows_ptr + b, mask=mask, other=0).to(tl.int64)
    seq_len = tl.load(seq_lens_ptr + b, mask=mask, other=0)
    token = tl.load(sampled_ptr + b, mask=mask, other=0)
    tl.store(tokens_ptr + row * stride_r + seq_len, token, mask=mask & (seq_len > 0))
