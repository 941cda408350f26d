"""Sampling on the GPU: the tokens of a step never leave it before the next step needs them.

The parameters of every live sequence are a line of a table on the GPU, indexed by its persistent
row. The CPU writes a line when a sequence is admitted and never again: the number of tokens
generated so far, on which the noise depends, is counted by the kernels.

Legend: B batch slots, R rows of the table, V vocabulary, L positions of a row, W words of a line.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import torch

from quire_engine.kernels.gpu import sampling_rows as words
from quire_engine.kernels.gpu.sampling_draw import Boundaries, Partials, pick, score_chunks
from quire_engine.kernels.gpu.sampling_limits import find_boundaries
from quire_engine.kernels.gpu.sampling_narrow import Narrowing
from quire_engine.runner.gpu.sampler_edits import Edits
from quire_engine.runner.gpu.sampler_logprobs import StepLogprobs, step_logprobs
from quire_engine.runner.gpu.sampler_rows import Line, line_of
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.row import SamplingRow
from quire_engine.runner.sampling.sampler import Sampler

PlainMode = Literal["greedy", "random"]
Mode = Literal["greedy", "random", "full"]
"""What a step's sampling must be able to do: take the largest logit; or draw, too; or all."""

MAX_EDITED_SLOTS = 64
"""Slots whose logits are edited at the same time: each takes 4 bytes a token."""


class GpuSampler:
    """Chooses tokens for up to `max_num_rows` sequences; draws as the CPU's `Sampler` does."""

    def __init__(
        self,
        *,
        max_num_rows: int,
        vocab_size: int,
        device: torch.device,
        eos_token_ids: Collection[int] = (),
        seed: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        self._rules = Sampler(vocab_size=vocab_size, eos_token_ids=eos_token_ids, seed=seed)
        self._table_RW = torch.zeros(
            max_num_rows, words.NUM_WORDS.value, dtype=torch.int32, device=device
        )
        self._boundaries = Boundaries.empty(max_num_rows, device)
        self._narrowing = Narrowing.empty(max_num_rows, vocab_size, device)
        self._partials = Partials.empty(max_num_rows, vocab_size, device)
        self._edited_BV = torch.zeros(
            min(max_num_rows, MAX_EDITED_SLOTS), vocab_size, dtype=torch.float32, device=device
        )
        self._edits = Edits(
            max_num_rows=max_num_rows,
            vocab_size=vocab_size,
            table_RW=self._table_RW,
            max_BC=self._narrowing.max_BC,
        )
        self._num_logprobs: dict[int, int] = {}
        self._lines: dict[int, Line] = {}
        self._staged: tuple[torch.Tensor, torch.Tensor] | None = None

    def stage(self, row: int, sequence: AdmittedSequence) -> Mode:
        """Take note of a new sequence of a row, and return the mode that its steps need."""
        admitted = self._rules.admit(sequence)
        self._lines[row] = line_of(admitted, self._vocab_size)
        self._edits.stage(row, admitted, sequence.num_prompt_tokens)
        self._num_logprobs.pop(row, None)
        if sequence.params.logprobs is not None:
            self._num_logprobs[row] = sequence.params.logprobs
        return mode_of(admitted)

    def put_staged(self, staging: Staging) -> None:
        """Add what was staged to this step's copy."""
        if self._lines:
            rows = np.fromiter(self._lines, dtype=np.int64, count=len(self._lines))
            lines = np.stack(list(self._lines.values()))
            self._staged = staging.put(rows), staging.put(lines)
            self._lines = {}

    def apply_staged(self) -> None:
        """Write what was staged to the tables, once its copy was sent on the current stream."""
        if self._staged is not None:
            rows, lines = self._staged
            self._table_RW.index_copy_(0, rows, lines)
            self._staged = None
        self._edits.apply_staged()

    def sample(
        self,
        logits_BV: torch.Tensor,
        rows_B: torch.Tensor,
        tokens_out_B: torch.Tensor,
        is_bad_out_B: torch.Tensor,
        mode: PlainMode,
    ) -> None:
        """Choose the next token of each slot, and count the rows' positions up.

        Writes int32: `tokens_out_B`, and to `is_bad_out_B` 1 for a row whose logits hold NaN or
        +inf. Launches kernels and nothing else: it can be captured. Columns of the logits from the
        vocabulary's size on are padding.
        """
        boundaries = None
        if mode != "greedy":
            boundaries = self._boundaries
            find_boundaries(
                logits_BV, self._vocab_size, self._table_RW, rows_B, self._narrowing, boundaries
            )
        score_chunks(
            logits_BV, self._vocab_size, self._table_RW, rows_B, boundaries, self._partials
        )
        pick(
            self._partials,
            self._vocab_size,
            self._table_RW,
            rows_B,
            tokens_out_B,
            is_bad_out_B,
        )

    def sample_full(
        self,
        logits_BV: torch.Tensor,
        rows_B: torch.Tensor,
        rows: Sequence[int],
        tokens_RL: torch.Tensor,
        tokens_out_B: torch.Tensor,
        is_bad_out_B: torch.Tensor,
    ) -> StepLogprobs | None:
        """Choose tokens as `sample`, with all that a request can ask for; not to be captured.

        `rows` are the rows of `rows_B`, `tokens_RL` the tokens of every row, prompt and output, up
        to its last. Returns the logprobs if any row asked for them. Never waits for the GPU.
        """
        logits_BV = logits_BV[:, : self._vocab_size]
        for start in range(0, len(rows), len(self._edited_BV)):
            part = slice(start, min(start + len(self._edited_BV), len(rows)))
            edited_BV = self._edited_BV[: part.stop - start]
            self._edits.edit(logits_BV[part], rows_B[part], rows[part], tokens_RL, edited_BV)
            self.sample(
                edited_BV,
                rows_B[part],
                tokens_out_B[part],
                is_bad_out_B[part],
                "random",
            )
        self._edits.count(rows_B, tokens_out_B)
        num_top = {
            slot: self._num_logprobs[row]
            for slot, row in enumerate(rows)
            if row in self._num_logprobs
        }
        return step_logprobs(logits_BV, tokens_out_B, num_top) if num_top else None


def mode_of(row: SamplingRow) -> Mode:
    """Return what the steps of a sequence need."""
    if row.is_edited or row.params.logprobs is not None:
        return "full"
    return "greedy" if row.is_greedy else "random"
