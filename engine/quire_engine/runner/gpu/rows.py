"""The runner's rows: a stable place on the GPU for each live sequence.

Tokens and block tables of all rows live on the GPU and change by differences; the host keeps only
what it needs to lay out the next step, in arrays. Everything here is known without waiting: how
long a sequence is does not depend on what is sampled.

Legend: R rows, L positions, M blocks of a sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from quire_engine.kernels.gpu.batch_inputs import scatter_segments
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.plan import AdmittedSequence, StepPlan

IntArray = np.ndarray[Any, np.dtype[np.int32]]


class Segments:
    """Stretches of numbers that go into rows of one table with the next staging copy."""

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target
        self._values: list[IntArray] = []
        self._segments: list[tuple[int, int, int, int]] = []
        self._num_values = 0
        self._staged: tuple[torch.Tensor, torch.Tensor, int] | None = None

    def add(self, row: int, first: int, values: Sequence[int]) -> None:
        """Add values for a row, from position `first` on."""
        if not values:
            return
        self._segments.append((row, first, len(values), self._num_values))
        self._values.append(np.asarray(values, dtype=np.int32))
        self._num_values += len(values)

    def stage(self, staging: Staging) -> None:
        """Hand over what was added."""
        self._staged = None
        if not self._segments:
            return
        max_len = max(segment[2] for segment in self._segments)
        source = staging.put(np.concatenate(self._values))
        segments = staging.put(np.array(self._segments, dtype=np.int32))
        self._staged = source, segments, max_len
        self._values, self._segments, self._num_values = [], [], 0

    def apply(self) -> None:
        """Write what was staged into the table, after the staging copy."""
        if self._staged is not None:
            source, segments, max_len = self._staged
            scatter_segments(self._target, source, segments, max_len)


class Rows:
    """Rows of all live sequences; the last row is nobody's and stands for padding."""

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device
    ) -> None:
        self.padding_row = max_num_seqs
        num_rows, max_blocks = max_num_seqs + 1, -(-(max_model_len + 1) // block_size)
        self.tokens_RL = torch.zeros(
            (num_rows, max_model_len + 1), dtype=torch.int32, device=device
        )
        self.block_table_RM = torch.zeros((num_rows, max_blocks), dtype=torch.int32, device=device)
        self.num_computed = np.zeros(num_rows, dtype=np.int32)
        self.num_known = np.zeros(num_rows, dtype=np.int32)
        """Tokens whose position is taken: those that steps in flight will sample as well."""
        self._num_blocks = np.zeros(num_rows, dtype=np.int32)
        self._row_of: dict[int, int] = {}
        self._free = list(reversed(range(max_num_seqs)))
        self._tokens, self._blocks = Segments(self.tokens_RL), Segments(self.block_table_RM)

    def __len__(self) -> int:
        return len(self._row_of)

    def __getitem__(self, seq_id: int) -> int:
        return self._row_of[seq_id]

    def of(self, seq_ids: Mapping[int, int]) -> IntArray:
        """Return the rows of sequences, in their order."""
        return np.fromiter(map(self._row_of.__getitem__, seq_ids), np.int32, len(seq_ids))

    def apply(self, plan: StepPlan) -> list[tuple[int, AdmittedSequence]]:
        """Drop, admit and extend as a plan says; return the rows that are new."""
        for seq_id in plan.dropped:
            if (row := self._row_of.pop(seq_id, None)) is not None:  # unknown after a failed step
                self._free.append(row)
        admitted = [(self._admit(sequence), sequence) for sequence in plan.admitted]
        for seq_id, block_ids in plan.new_block_ids.items():
            self._extend(self._row_of[seq_id], block_ids)
        return admitted

    def stage(self, staging: Staging) -> None:
        """Hand over what changed."""
        self._tokens.stage(staging)
        self._blocks.stage(staging)

    def apply_staged(self) -> None:
        """Bring the GPU's tables up to date, after the staging copy."""
        self._tokens.apply()
        self._blocks.apply()

    def _admit(self, sequence: AdmittedSequence) -> int:
        assert sequence.seq_id not in self._row_of, f"sequence {sequence.seq_id} is admitted twice"
        row = self._free.pop()
        self._row_of[sequence.seq_id] = row
        self.num_computed[row] = sequence.num_computed_tokens
        self.num_known[row] = len(sequence.token_ids)
        self._num_blocks[row] = 0
        self._tokens.add(row, 0, sequence.token_ids)
        self._extend(row, sequence.block_ids)
        return row

    def _extend(self, row: int, block_ids: Sequence[int]) -> None:
        first = int(self._num_blocks[row])
        self._blocks.add(row, first, block_ids)
        self._num_blocks[row] = first + len(block_ids)
