"""Changes to logits before the temperature: constraints, biases and penalties, in place.

Order as vLLM's: allowed tokens, bad words, logit bias, min_tokens, penalties. Each costs nothing
when no row asks for it; the rest is one gather or scatter for all rows. Shapes: S rows, V
vocabulary, N touched logits.
"""

from collections.abc import Sequence

import numpy as np
import torch

from quire_engine.runner.sampling.row import IdArray, SamplingRow

_NEVER = float("-inf")
_LARGEST = 1e30


def edit_logits(x_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply everything that the rows ask for to contiguous float32 logits."""
    edited = [(index, row) for index, row in enumerate(rows) if row.is_edited]
    for index, row in edited:
        if len(row.allowed_ids):
            keep_only(x_SV[index], row)
    _forbid(x_SV, {index: row.banned_ids() for index, row in edited})
    _add_bias(x_SV, [(index, row) for index, row in edited if len(row.bias_ids)])
    _forbid(x_SV, {index: row.stop_ids for index, row in edited if row.holds_back_stops})
    _penalise(x_SV, [(index, row) for index, row in edited if row.counts is not None])


def keep_only(x_V: torch.Tensor, row: SamplingRow) -> None:
    """Forbid every token outside of the row's `allowed_token_ids`."""
    allowed = torch.from_numpy(row.allowed_ids).to(x_V.device)
    kept = x_V[allowed]
    x_V.fill_(_NEVER)
    x_V[allowed] = kept


def _forbid(x_SV: torch.Tensor, ids_by_row: dict[int, IdArray]) -> None:
    found = {index: ids for index, ids in ids_by_row.items() if len(ids)}
    if found:
        x_SV.view(-1)[_flat_ids(x_SV, found)] = _NEVER


def _add_bias(x_SV: torch.Tensor, rows: list[tuple[int, SamplingRow]]) -> None:
    if rows:
        flat = _flat_ids(x_SV, {index: row.bias_ids for index, row in rows})
        bias = np.concatenate([row.bias for _, row in rows])
        x_SV.view(-1)[flat] += torch.from_numpy(bias).to(x_SV.device)


def _penalise(x_SV: torch.Tensor, rows: list[tuple[int, SamplingRow]]) -> None:
    """Apply repetition (prompt and output), then frequency and presence (output) penalties."""
    counted = [(index, row, row.counts) for index, row in rows if row.counts is not None]
    if not counted:
        return
    flat_N = _flat_ids(x_SV, {index: counts.ids for index, _, counts in counted})
    counts_N = np.concatenate([counts.counts for _, _, counts in counted])
    lengths = [len(counts.ids) for _, _, counts in counted]

    def spread(name: str) -> torch.Tensor:
        values = np.array([getattr(row.params, name) for _, row, _ in counted], dtype=np.float32)
        return torch.from_numpy(np.repeat(values, lengths)).to(x_SV.device)

    repetition_N = spread("repetition_penalty")
    output_N = torch.from_numpy(counts_N).to(x_SV.device)
    x_N = x_SV.view(-1)[flat_N]
    x_N = torch.where(x_N > 0, x_N / repetition_N, x_N * repetition_N)
    x_N -= spread("frequency_penalty") * output_N
    x_N -= spread("presence_penalty") * (output_N > 0)
    # A tiny repetition penalty must not make a logit infinite.
    x_SV.view(-1)[flat_N] = x_N.clamp_(max=_LARGEST)


def _flat_ids(x_SV: torch.Tensor, ids_by_row: dict[int, IdArray]) -> torch.Tensor:
    width = x_SV.shape[-1]
    flat = np.concatenate([ids + index * width for index, ids in ids_by_row.items()])
    return torch.from_numpy(flat).to(x_SV.device)
