"""Decode attention's tiles: which are worth a measurement, and whether they give what they should.

`step_tuner.py` says which of them make a step fastest. Cuts into splits and loops are tried one
after the other, each with the best of the others.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from quire_engine.kernels.gpu.attention_tiles import (
    HOPPER_SHARED_BYTES,
    AttentionTable,
    DecodeTiles,
    Heads,
)
from quire_engine.kernels.gpu.attention_workloads import Sequences, Workload
from quire_engine.kernels.gpu.step_tuner import StepTuner

Compile = Callable[[int, Sequence[Callable[[], None]]], None]
"""Compiles what a step of so many tokens launches after each of some changes to the tables."""

MAX_ERROR = 1e-2
CHECKED_LENS = (1, 40, 700)
"""Lengths of sequences whose attention is compared with the reference."""
MAX_PROGRAMS = 8
"""Most programs for a processor that are tried: a plan must have room for what they cut."""


def split_candidates(tiles: DecodeTiles) -> Iterator[DecodeTiles]:
    """Yield tiles that cut sequences into more or fewer splits."""
    for programs, keys in itertools.product((1, 2, 3, 4, 6, MAX_PROGRAMS), (64, 128, 256, 512)):
        if keys >= tiles.block_n:
            yield replace(tiles, programs_per_processor=programs, min_split_keys=keys)
    # Not split at all, but for the longest: nothing to merge.
    yield replace(tiles, programs_per_processor=1, min_split_keys=1024)


def loop_candidates(tiles: DecodeTiles, heads: Heads) -> Iterator[DecodeTiles]:
    """Yield tiles with other loops over the keys of a split."""
    loops = ((32, 1), (32, 2), (64, 1), (64, 2), (64, 4), (128, 4), (128, 8))
    # Without looking ahead, one step of keys is in flight anyway.
    flights = ((False, 3), (True, 2), (True, 3), (True, 4), (True, 6))
    for (block_n, warps), (ahead, stages) in itertools.product(loops, flights):
        if 2 * block_n * heads.line_bytes * stages <= HOPPER_SHARED_BYTES:
            yield replace(
                tiles, block_n=block_n, num_warps=warps, num_stages=stages, looks_ahead=ahead
            )


def _rounds(heads: Heads) -> list[Callable[[DecodeTiles], Iterator[DecodeTiles]]]:
    """Return what to try, in order: each takes the best tiles so far."""
    return [
        split_candidates,
        lambda tiles: loop_candidates(tiles, heads),
        split_candidates,
    ]


class DecodeChoice:
    """What the table says for batches of some size."""

    name = "decode attention"

    def __init__(
        self,
        table: AttentionTable,
        heads: Heads,
        max_batch: int,
        *,
        device: torch.device,
        kv_dtype: torch.dtype,
        num_processors: int,
    ) -> None:
        self._table, self.heads, self._max_batch = table, heads, max_batch
        self._workload = Workload(
            Sequences(query_lens=(1,) * len(CHECKED_LENS), seq_lens=CHECKED_LENS),
            heads,
            device,
            kv_dtype=kv_dtype,
            num_processors=num_processors,
            cache_bytes=1,
        )

    def get(self) -> DecodeTiles:
        return self._table.decode(self.heads, self._max_batch)

    def put(self, tiles: DecodeTiles) -> None:
        self._table.put_decode(self.heads, self._max_batch, tiles)

    def error(self, tiles: DecodeTiles) -> float:
        """Compare with the plain computation."""
        self._workload.decode(self._workload.plan(tiles))
        return self._workload.relative_error() / MAX_ERROR


def tune(choice: DecodeChoice, num_tokens: int, tuner: StepTuner, compile_steps: Compile) -> None:
    """Leave the tiles in the table that make a step of so many tokens fastest."""
    for candidates in _rounds(choice.heads):
        if tuner.is_out_of_time:
            return
        before = choice.get()
        found = list(candidates(before))
        # Side by side, before each is timed; the last change leaves the table as it was.
        compile_steps(num_tokens, [partial(choice.put, tiles) for tiles in (*found, before)])
        tuner.tune(choice, num_tokens, found)
