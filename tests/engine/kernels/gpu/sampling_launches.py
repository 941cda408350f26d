"""Compiles every launch of sampling for a Hopper GPU and prints what came of it.

Run as a program: in the tests' own process triton may be interpreted.
"""

import sys
from unittest import mock

import torch

from hopper_compiler import Compiled, recorded_launches
from quire_engine.kernels.gpu import launch
from quire_engine.kernels.gpu.sampling_draw import Boundaries, Partials, pick, score_chunks
from quire_engine.kernels.gpu.sampling_edits import (
    EditTables,
    count_tokens,
    lift_contradictions,
    mask_logits,
    penalise,
)
from quire_engine.kernels.gpu.sampling_limits import find_boundaries
from quire_engine.kernels.gpu.sampling_narrow import Narrowing
from quire_engine.kernels.gpu.sampling_rows import NUM_WORDS

META = torch.device("meta")
NUM_SLOTS = 64


def launch_all(dtype: torch.dtype, vocab_size: int) -> None:
    """Launch everything that sampling may launch for logits of one kind."""
    logits_BV = torch.empty(NUM_SLOTS, vocab_size, dtype=dtype, device=META)
    x_BV = torch.empty(NUM_SLOTS, vocab_size, dtype=torch.float32, device=META)
    table_RW = torch.empty(NUM_SLOTS, NUM_WORDS.value, dtype=torch.int32, device=META)
    rows_B = torch.empty(NUM_SLOTS, dtype=torch.int32, device=META)
    memory = Narrowing.empty(NUM_SLOTS, vocab_size, META)
    partials = Partials.empty(NUM_SLOTS, vocab_size, META)
    boundaries = Boundaries.empty(NUM_SLOTS, META)
    tables = EditTables.empty(NUM_SLOTS, vocab_size, META)
    mask_logits(logits_BV, table_RW, rows_B, tables, x_BV)
    penalise(x_BV, table_RW, rows_B, tables, memory.max_BC)
    lift_contradictions(x_BV, logits_BV, table_RW, rows_B, tables, memory.max_BC)
    for given_BV in (logits_BV, x_BV):
        find_boundaries(given_BV, vocab_size, table_RW, rows_B, memory, boundaries)
        score_chunks(given_BV, vocab_size, table_RW, rows_B, boundaries, partials)
        score_chunks(given_BV, vocab_size, table_RW, rows_B, None, partials)
    pick(partials, vocab_size, table_RW, rows_B, rows_B, rows_B)
    count_tokens(rows_B, table_RW, rows_B, tables)


def compiled_launches(vocab_size: int) -> list[Compiled]:
    """Return every launch for bfloat16 logits, with dependent launches as on a Hopper GPU."""
    with (
        mock.patch.object(launch, "has_dependent_launch", return_value=True),
        recorded_launches() as launches,
    ):
        launch_all(torch.bfloat16, vocab_size)
    return launches


if __name__ == "__main__":
    for one in compiled_launches(int(sys.argv[1])):
        wide = one.ptx.count("ld.global.v4")
        sys.stdout.write(f"{one.spilled_bytes} {wide} {one}\n")
