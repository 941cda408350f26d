"""Draw one token per row: temperature, min_p, top_k, top_p, then Gumbel-max.

A token is drawn by adding Gumbel noise to the logits and taking the largest sum, which follows
the softmax without computing it. Rows that truncate the distribution look only at their most
likely tokens, found by a threshold below the maximum and checked to hold everything that top_k
and top_p could keep; where they do not, the threshold falls, at last to the whole vocabulary.

Shapes: S rows, V vocabulary, K candidates in descending order, padded with -inf.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from quire_engine.runner.sampling.noise import gumbel, key_of, keys_tensor
from quire_engine.runner.sampling.row import SamplingRow

_NEVER = float("-inf")
_DEPTHS = (8.0, 16.0, float("inf"))
_MAX_SHARED_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Truncation:
    """Limits of S rows as (S, 1) columns; `keys` (S, 2) are those of their draws."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    keys: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], device: torch.device) -> "Truncation":
        def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).unsqueeze(-1).to(device)

        return cls(
            top_k=column([row.params.top_k for row in rows], torch.int64),
            top_p=column([row.params.top_p for row in rows], torch.float64),
            keys=_keys(rows, device),
        )

    def rows(self, index_S: torch.Tensor) -> "Truncation":
        return Truncation(
            top_k=self.top_k[index_S],
            top_p=self.top_p[index_S],
            keys=self.keys[index_S],
        )


def is_truncated(row: SamplingRow) -> bool:
    """Tell whether the row draws from its most likely tokens alone (min_p is no matter here)."""
    return row.params.top_k > 0 or row.params.top_p < 1.0


def _shape(x_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Divide by the temperature, then forbid what is less likely than min_p times the best."""
    temperatures = [row.params.temperature for row in rows]
    if any(temperature != 1.0 for temperature in temperatures):
        x_SV.div_(torch.tensor(temperatures).unsqueeze(-1).to(x_SV.device))
    min_ps = [row.params.min_p for row in rows]
    if any(min_p > 0.0 for min_p in min_ps):
        depth_S1 = torch.tensor(min_ps).log_().unsqueeze(-1).to(x_SV.device)
        x_SV.masked_fill_(x_SV < x_SV.amax(-1, keepdim=True) + depth_S1, _NEVER)


def draw_from_all(x_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw from all that min_p keeps; `x_SV` is overwritten.

    Works row by row, which keeps the noise in the CPU's cache.
    """
    _shape(x_SV, rows)
    keys_S2 = _keys(rows, x_SV.device)
    ids_V = torch.arange(x_SV.shape[-1], dtype=torch.int32, device=x_SV.device)
    best = [
        gumbel(ids_V, key[0], key[1]).add_(x_V).argmax()
        for x_V, key in zip(x_SV, keys_S2, strict=True)
    ]
    return torch.stack(best).tolist()


def draw_truncated(x_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw from what min_p, top_k and top_p keep; `x_SV` is overwritten."""
    _shape(x_SV, rows)
    limits = Truncation.of(rows, x_SV.device)
    max_S1 = x_SV.amax(-1, keepdim=True)
    mass_S1 = _total_mass(x_SV, max_S1, rows)
    drawn: dict[int, int] = {}
    for depth in _DEPTHS:
        left = [index for index in range(len(rows)) if index not in drawn]
        for part, ids_SK in _candidates(x_SV, max_S1 - depth, left):
            index_S = torch.tensor(part, device=x_SV.device)
            # Gathered from the flat logits: indexing the rows first would copy them whole.
            flat_SK = ids_SK.clamp(min=0) + index_S.unsqueeze(-1) * x_SV.shape[-1]
            x_SK = x_SV.take(flat_SK).masked_fill_(ids_SK < 0, _NEVER)
            tokens_S, is_sure_S = _draw_among(
                x_SK - max_S1[index_S], ids_SK, mass_S1[index_S], limits.rows(index_S)
            )
            sure = is_sure_S.tolist() if depth < _DEPTHS[-1] else [True] * len(part)
            found = zip(part, tokens_S.tolist(), sure, strict=True)
            drawn |= {index: token for index, token, is_sure in found if is_sure}
    return [drawn[index] for index in range(len(rows))]


def _total_mass(
    x_SV: torch.Tensor, max_S1: torch.Tensor, rows: Sequence[SamplingRow]
) -> torch.Tensor:
    """Return the sum of exp(x - max) of each row; infinite where no row needs it."""
    if all(row.params.top_p >= 1.0 for row in rows):
        return torch.full_like(max_S1, float("inf"), dtype=torch.float64)
    return (x_SV - max_S1).exp_().sum(-1, keepdim=True).double()


def _candidates(
    x_SV: torch.Tensor, least_S1: torch.Tensor, left: list[int]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield groups of the rows in `left`, with the ids of their tokens of at least `least`.

    Ids ascend and are padded with -1. Rows with many candidates come alone, so that one flat
    distribution does not widen the others.
    """
    if not left:
        return
    is_in_SV = x_SV >= least_S1 if len(left) == len(x_SV) else x_SV[left] >= least_S1[left]
    row_N, id_N = is_in_SV.nonzero(as_tuple=True)
    counts = row_N.bincount(minlength=len(left)).tolist()
    ids = dict(zip(left, torch.split(id_N, counts), strict=True))
    narrow = [index for index in left if len(ids[index]) <= _MAX_SHARED_WIDTH]
    for part in [narrow] * bool(narrow) + [[index] for index in left if index not in narrow]:
        yield part, pad_sequence([ids[index] for index in part], True, -1.0)


def _draw_among(
    x_SK: torch.Tensor, ids_SK: torch.Tensor, mass_S1: torch.Tensor, limits: Truncation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's token, and whether its candidates held all that its limits keep.

    `x_SK` is relative to the row's maximum; `mass_S1` is that of the whole row on the same scale.
    """
    x_SK, order_SK = x_SK.sort(dim=-1, descending=True, stable=True)
    ids_SK = ids_SK.gather(-1, order_SK)
    is_real_SK = x_SK > _NEVER
    p_SK = x_SK.double().exp_()
    num_S1, held_S1 = is_real_SK.sum(-1, keepdim=True), p_SK.sum(-1, keepdim=True)
    has_k_S1, has_p_S1 = limits.top_k > 0, limits.top_p < 1.0
    is_sure_S1 = (has_k_S1 & (num_S1 >= limits.top_k)) | (
        has_p_S1 & (held_S1 >= limits.top_p * mass_S1)
    )
    in_k_SK = torch.arange(x_SK.shape[-1], device=x_SK.device) < limits.top_k
    kept_SK = is_real_SK & (in_k_SK | ~has_k_S1)
    p_SK = p_SK.masked_fill_(~kept_SK, 0.0)
    # The rest of the row counts unless top_k cuts it off.
    base_S1 = torch.where(has_k_S1, p_SK.sum(-1, keepdim=True), mass_S1)
    before_SK = p_SK.cumsum(-1) - p_SK
    kept_SK &= (before_SK < limits.top_p * base_S1) | ~has_p_S1
    keys_S2 = limits.keys
    noise_SK = gumbel(ids_SK.to(torch.int32), keys_S2[:, :1], keys_S2[:, 1:])
    winner_S1 = (x_SK + noise_SK).masked_fill_(~kept_SK, _NEVER).argmax(-1, keepdim=True)
    return ids_SK.gather(-1, winner_S1).squeeze(-1), is_sure_S1.squeeze(-1)


def _keys(rows: Sequence[SamplingRow], device: torch.device) -> torch.Tensor:
    return keys_tensor([key_of(row.seed, row.num_output_tokens) for row in rows], device)
