"""The runner's memory of live sequences: a stable row per sequence, until it is dropped.

Tokens and block tables live in arrays with one line per row, so that a step's input is sliced out
of them instead of being rebuilt from lists. The arrays start as untouched zero pages: rows and
positions that no sequence reaches cost nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.runner.sampling.row import SamplingRow

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True, kw_only=True)
class Row:
    """What the runner knows of one live sequence, beside its lines in the arrays."""

    index: int
    seq_id: int
    num_prompt_tokens: int
    num_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_prompt_logprobs: int | None
    sampling: SamplingRow

    def end_of(self, num_new: int) -> int:
        """Return the position after the next `num_new` tokens to compute."""
        return self.num_computed_tokens + num_new


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The tokens of one sequence in one step: T of them, at lines `first_line` and following."""

    row: Row
    start: int
    """Position of the first token."""
    num_tokens: int
    first_line: int
    blocks: IntArray
    """Block table of the sequence."""

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        return self.end == self.row.num_tokens


class InputBatch:
    """Rows of all live sequences; applies the differences that plans bring."""

    def __init__(self, *, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        max_blocks = -(-(max_model_len + 1) // block_size)
        self._token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int64)
        self._blocks = np.zeros((max_num_seqs, max_blocks), dtype=np.int64)
        self._token_ids_at, self._blocks_at = self._token_ids.ctypes.data, self._blocks.ctypes.data
        self._free = list(reversed(range(max_num_seqs)))
        self._rows: dict[int, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, plan: StepPlan, sampling_rows: Mapping[int, SamplingRow]) -> None:
        """Drop, admit and extend as a plan says; `sampling_rows` has those it admits."""
        for seq_id in plan.dropped:
            if (row := self._rows.pop(seq_id, None)) is not None:  # unknown after a failed step
                self._free.append(row.index)
        for sequence in plan.admitted:
            self._admit(sequence, sampling_rows[sequence.seq_id])
        for seq_id, block_ids in plan.new_block_ids.items():
            self._extend(self._rows[seq_id], block_ids)

    def _admit(self, sequence: AdmittedSequence, sampling: SamplingRow) -> None:
        assert sequence.seq_id not in self._rows, f"sequence {sequence.seq_id} is admitted twice"
        row = Row(
            index=self._free.pop(),
            seq_id=sequence.seq_id,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_tokens=len(sequence.token_ids),
            num_computed_tokens=sequence.num_computed_tokens,
            num_blocks=0,
            num_prompt_logprobs=sequence.params.prompt_logprobs,
            sampling=sampling,
        )
        self._token_ids[row.index, : row.num_tokens] = sequence.token_ids
        self._extend(row, sequence.block_ids)
        self._rows[sequence.seq_id] = row

    def _extend(self, row: Row, block_ids: Sequence[int]) -> None:
        end = row.num_blocks + len(block_ids)
        self._blocks[row.index, row.num_blocks : end] = block_ids
        row.num_blocks = end

    def chunks(self, num_tokens: Mapping[int, int]) -> list[Chunk]:
        """Lay out a step: single tokens first, then longer chunks, each by sequence length.

        Attention works on groups of similar chunks, and finds them side by side this way.
        """
        wanted = [(self._rows[seq_id], count) for seq_id, count in num_tokens.items()]
        wanted.sort(key=lambda item: (item[1] > 1, item[0].end_of(item[1])))
        found, line = [], 0
        for row, count in wanted:
            found.append(self._chunk(row, count, line))
            line += count
        return found

    def _chunk(self, row: Row, num_tokens: int, first_line: int) -> Chunk:
        chunk = Chunk(
            row=row,
            start=row.num_computed_tokens,
            num_tokens=num_tokens,
            first_line=first_line,
            blocks=self._blocks[row.index, : row.num_blocks],
        )
        assert chunk.end <= row.num_tokens, f"sequence {row.seq_id} has no token {chunk.end - 1}"
        return chunk

    def token_ids(self, row: Row, start: int, end: int) -> IntArray:
        """Return tokens of a sequence by position."""
        return self._token_ids[row.index, start:end]

    def token_ids_address(self, row: Row) -> int:
        """Return where a sequence's tokens are in memory, int64 by position."""
        return self._token_ids_at + row.index * self._token_ids.strides[0]

    def blocks_address(self, row: Row) -> int:
        """Return where a sequence's block table is in memory, int64."""
        return self._blocks_at + row.index * self._blocks.strides[0]

    def advance(self, chunk: Chunk) -> None:
        """Note that a chunk's tokens are computed."""
        chunk.row.num_computed_tokens = chunk.end

    def append(self, row: Row, token_id: int) -> None:
        """Add the token that was sampled for a row."""
        self._token_ids[row.index, row.num_tokens] = token_id
        row.num_tokens += 1
        row.sampling.append(token_id)
