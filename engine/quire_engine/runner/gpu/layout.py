"""How the sequences of a step lie side by side: single tokens first, then longer chunks.

Legend: B batch slots, one per sequence of the step; S those that sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quire_engine.runner.gpu.rows import IntArray, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """One step, as arrays that the host knows without waiting for the GPU."""

    rows_B: IntArray
    first_lines_B: IntArray
    query_lens_B: IntArray
    seq_lens_B: IntArray
    """Tokens of each sequence up to and including this step's."""
    num_decodes: int
    """Slots that compute a single token; they come first."""
    sampling_S: IntArray
    """Slots whose sequence gets its next token from this step."""
    seq_ids: list[int]
    """Sequences that sample, parallel to `sampling_S`."""
    slot_seq_ids: list[int]
    """The sequences of all slots."""

    @property
    def num_slots(self) -> int:
        return len(self.rows_B)

    @property
    def num_tokens(self) -> int:
        return int(self.first_lines_B[-1] + self.query_lens_B[-1])

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes and samples one token."""
        return self.num_decodes == self.num_slots == len(self.sampling_S)

    @property
    def last_lines(self) -> IntArray:
        """Lines whose hidden state says the next token."""
        picked = self.sampling_S
        return self.first_lines_B[picked] + self.query_lens_B[picked] - 1


def lay_out(rows: Rows, num_tokens: Mapping[int, int]) -> StepLayout:
    """Lay out a step, and note in `rows` that it was launched."""
    seq_ids = list(num_tokens)
    query_lens = np.fromiter(num_tokens.values(), np.int32, len(seq_ids))
    picked = rows.of(num_tokens)
    num_decodes = int((query_lens == 1).sum())
    if num_decodes < len(seq_ids):
        order = np.argsort(query_lens > 1, kind="stable")
        query_lens, picked = query_lens[order], picked[order]
        seq_ids = [seq_ids[index] for index in order]
    seq_lens = rows.num_computed[picked] + query_lens
    samples = seq_lens == rows.num_known[picked]
    rows.num_computed[picked] = seq_lens
    rows.num_known[picked[samples]] += 1
    sampling = np.flatnonzero(samples).astype(np.int32)
    return StepLayout(
        rows_B=picked,
        first_lines_B=(np.cumsum(query_lens) - query_lens).astype(np.int32),
        query_lens_B=query_lens,
        seq_lens_B=seq_lens,
        num_decodes=num_decodes,
        sampling_S=sampling,
        slot_seq_ids=seq_ids,
        seq_ids=seq_ids if len(sampling) == len(seq_ids) else [seq_ids[i] for i in sampling],
    )
