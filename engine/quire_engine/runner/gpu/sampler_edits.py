"""What sequences ask to be changed in their logits: kept on the GPU by row, or sent with a step.

Sets of tokens and counts are written when a sequence is admitted. Biases and bad words are sent
with each step that they matter to: requests that have them are few, and have few. Whether the end
of an output begins a bad word is found on the GPU, where its last token is.

Legend: B batch slots, R rows, V vocabulary, L positions of a row, N logits, P phrases, A tokens of
the longest phrase but its last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quire_engine.kernels.gpu import sampling_rows as words
from quire_engine.kernels.gpu.sampling_edits import (
    IS_IN_PROMPT,
    MAX_COUNT,
    EditTables,
    count_tokens,
    lift_contradictions,
    mask_logits,
    penalise,
)
from quire_engine.runner.gpu.transfer import to_device
from quire_engine.runner.sampling.row import IdArray, SamplingRow

_NEVER = float("-inf")

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class _Additions:
    """What is added to logits of a row in each of its steps."""

    ids: IdArray
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Phrases:
    """Bad words of several tokens of a row, and where its output begins."""

    phrases: list[tuple[int, ...]]
    num_prompt_tokens: int


class Edits:
    """Edits logits of rows, in the order of `runner/sampling/edits.py`."""

    def __init__(
        self, *, max_num_rows: int, vocab_size: int, table_RW: torch.Tensor, max_BC: torch.Tensor
    ) -> None:
        self._vocab_size, self._device = vocab_size, table_RW.device
        self._table_RW, self._max_BC = table_RW, max_BC
        self._tables = EditTables.empty(max_num_rows, vocab_size, table_RW.device)
        self._staged: dict[int, SamplingRow] = {}
        self._additions: dict[int, _Additions] = {}
        self._phrases: dict[int, _Phrases] = {}

    def stage(self, row: int, admitted: SamplingRow, num_prompt_tokens: int) -> None:
        """Take note of a new sequence of a row; the one before it is forgotten."""
        for known in (self._staged, self._additions, self._phrases):
            known.pop(row, None)
        if edits_of(admitted):
            self._staged[row] = admitted
        if len(admitted.bias_ids) or len(admitted.banned):
            never = np.full(len(admitted.banned), _NEVER, dtype=np.float32)
            self._additions[row] = _Additions(
                ids=np.concatenate([admitted.bias_ids, admitted.banned]),
                values=np.concatenate([admitted.bias, never]),
            )
        if admitted.phrases:
            self._phrases[row] = _Phrases(admitted.phrases, num_prompt_tokens)

    def apply_staged(self) -> None:
        """Write what is kept on the GPU, on the current stream."""
        for row, admitted in self._staged.items():
            edits = edits_of(admitted)
            if edits & words.HAS_ALLOWED.value:
                self._tables.allowed_RW[row].copy_(self._bits(admitted.allowed_ids))
            if edits & words.HAS_STOPS.value:
                self._tables.stops_RW[row].copy_(self._bits(admitted.stop_ids))
            if edits & words.HAS_PENALTIES.value:
                self._write_counts(row, admitted)
        self._staged = {}

    def edit(
        self,
        logits_BV: torch.Tensor,
        rows_B: torch.Tensor,
        rows: Sequence[int],
        tokens_RL: torch.Tensor,
        out_BV: torch.Tensor,
    ) -> None:
        """Write the edited logits; `rows` are those of `rows_B`, `tokens_RL` all rows' tokens."""
        mask_logits(logits_BV, self._table_RW, rows_B, self._tables, out_BV)
        self._add(rows, out_BV)
        self._ban_phrases(rows, tokens_RL, out_BV)
        penalise(out_BV, self._table_RW, rows_B, self._tables, self._max_BC)
        lift_contradictions(out_BV, logits_BV, self._table_RW, rows_B, self._tables, self._max_BC)

    def count(self, rows_B: torch.Tensor, tokens_B: torch.Tensor) -> None:
        """Count the tokens that were sampled."""
        count_tokens(tokens_B, self._table_RW, rows_B, self._tables)

    def _bits(self, ids: IdArray) -> torch.Tensor:
        is_in = np.zeros(-(-self._vocab_size // 32) * 32, dtype=np.bool_)
        is_in[ids] = True
        return to_device(np.packbits(is_in, bitorder="little").view(np.int32), self._device)

    def _write_counts(self, row: int, admitted: SamplingRow) -> None:
        assert admitted.counts is not None, "the row has no penalties"
        counts = np.minimum(admitted.counts.counts, MAX_COUNT.value).astype(np.int16)
        # Tokens of the output need no such bit: that they are counted says as much.
        in_prompt = np.where(counts == 0, IS_IN_PROMPT.value, 0)
        line_V = self._tables.counts_RV[row].zero_()
        ids = to_device(admitted.counts.ids, self._device)
        line_V[ids] = to_device((counts | in_prompt).astype(np.int16), self._device)

    def _add(self, rows: Sequence[int], x_BV: torch.Tensor) -> None:
        known = self._additions
        found = [(slot, known[row]) for slot, row in enumerate(rows) if row in known]
        if found:
            flat = np.concatenate([one.ids + slot * self._vocab_size for slot, one in found])
            values = np.concatenate([one.values for _, one in found])
            x_BV.view(-1).index_add_(
                0, to_device(flat, self._device), to_device(values, self._device)
            )

    def _ban_phrases(
        self, rows: Sequence[int], tokens_RL: torch.Tensor, x_BV: torch.Tensor
    ) -> None:
        """Forbid the last token of each phrase whose other tokens end the row's output."""
        lines: list[tuple[int, int, int, int]] = []
        befores: list[tuple[int, ...]] = []
        for slot, row in enumerate(rows):
            if (known := self._phrases.get(row)) is not None:
                for *before, last in known.phrases:
                    flat = slot * self._vocab_size + last
                    lines.append((flat, row, known.num_prompt_tokens, len(before)))
                    befores.append(tuple(before))
        if not lines:
            return
        width = max(map(len, befores))
        # Padded on the left: the ends of phrases and output are aligned.
        padded = [(-1,) * (width - len(one)) + one for one in befores]
        before_PA = to_device(np.array(padded, dtype=np.int32), self._device)
        flat_P, row_P, prompt_P, len_P = to_device(np.array(lines, dtype=np.int64).T, self._device)
        num_output_P = self._table_RW[row_P, words.POSITION.value]
        back_A = torch.arange(width, 0, -1, device=self._device)
        place_PA = (prompt_P + num_output_P).unsqueeze(-1) - back_A
        tail_PA = tokens_RL[row_P.unsqueeze(-1), place_PA.clamp_(min=0)]
        is_same_PA = (tail_PA == before_PA) | (back_A > len_P.unsqueeze(-1))
        is_banned_P = is_same_PA.all(-1) & (num_output_P >= len_P)
        x_BV.view(-1).index_add_(0, flat_P, torch.where(is_banned_P, _NEVER, 0.0))


def edits_of(row: SamplingRow) -> int:
    """Return the bits of the edits that are kept on the GPU."""
    edits = 0
    if len(row.allowed_ids):
        edits |= words.HAS_ALLOWED.value
    if row.params.min_tokens > 0 and len(row.stop_ids):
        edits |= words.HAS_STOPS.value
    if row.counts is not None:
        edits |= words.HAS_PENALTIES.value
    return int(edits)
