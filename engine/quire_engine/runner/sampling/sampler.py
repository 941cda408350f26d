"""The sampler: logits of a step in, one token per row out.

`Sampler.admit` gives each sequence a `SamplingRow` when the runner meets it; after each step the
runner tells the row its new token (`row.append`). Nothing else is kept between steps, and nothing
a row draws depends on the other rows. Works on any device that torch works on.

Shapes: B rows of the step, S rows of one kind among them, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.errors import QuireError
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.draw import draw_from_all, draw_truncated, is_truncated
from quire_engine.runner.sampling.edits import edit_logits, keep_only
from quire_engine.runner.sampling.logprobs import token_logprobs
from quire_engine.runner.sampling.row import SamplingRow
from quire_engine.runner.sampling.threads import few_threads

Way = Callable[[torch.Tensor, Sequence[SamplingRow]], list[int]]
"""Turns the float32 logits of some rows into their tokens; may overwrite the logits."""


class SampledToken(NamedTuple):
    """The next token of one row, and its logprobs if the row asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


class BadLogitsError(QuireError):
    """The model computed NaN or +inf: its weights or its kernels are broken."""

    def __init__(self, seq_ids: Collection[int]) -> None:
        super().__init__(
            f"the model computed NaN or infinite logits for {len(seq_ids)} sequences "
            f"(seq_id {', '.join(map(str, seq_ids))})"
        )
        self.seq_ids = seq_ids


class Sampler:
    """Chooses tokens for one model; `seed` gives unseeded sequences theirs."""

    def __init__(
        self, *, vocab_size: int, eos_token_ids: Collection[int] = (), seed: int = 0
    ) -> None:
        self.vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._seed = seed
        self._scratch_BV = torch.empty(0, vocab_size)

    def admit(self, sequence: AdmittedSequence) -> SamplingRow:
        """Return the row of a sequence that is new, or back with tokens it had generated."""
        params = sequence.params
        stop_ids = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_ids |= self._eos_token_ids
        row = SamplingRow(
            seq_id=sequence.seq_id,
            params=params,
            prompt_token_ids=sequence.token_ids[: sequence.num_prompt_tokens],
            vocab_size=self.vocab_size,
            seed=self._seed,
            stop_ids=stop_ids,
            bad_words_token_ids=sequence.bad_words_token_ids,
        )
        for token_id in sequence.token_ids[sequence.num_prompt_tokens :]:
            row.append(token_id)
        return row

    def sample(self, logits_BV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """Choose a token per row; neither the logits nor the rows change.

        Logits are of any float type; columns from `vocab_size` on are padding.

        Raises:
            BadLogitsError: a row's largest logit is NaN or +inf.
        """
        logits_BV = logits_BV[:, : self.vocab_size]
        with few_threads(logits_BV):
            token_ids = self._choose(logits_BV, rows)
            logprobs = _chosen_logprobs(logits_BV, rows, token_ids)
        return [
            SampledToken(token_id, logprobs.get(index)) for index, token_id in enumerate(token_ids)
        ]

    def _choose(self, logits_BV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
        plain = [index for index, row in enumerate(rows) if row.is_greedy and not row.is_edited]
        other = [index for index, row in enumerate(rows) if not row.is_greedy or row.is_edited]
        chosen: dict[int, int] = {}
        if plain:
            raw_SV = logits_BV[plain] if other else logits_BV
            chosen |= zip(plain, self._most_likely(raw_SV, [rows[i] for i in plain]), strict=True)
        if other:
            raw_SV = logits_BV[other] if plain else logits_BV
            chosen |= zip(other, self._edit_and_draw(raw_SV, [rows[i] for i in other]), strict=True)
        return [chosen[index] for index in range(len(rows))]

    def _most_likely(self, raw_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
        needs_copy = raw_SV.device.type == "cpu" and raw_SV.dtype != torch.float32
        x_SV = self._copy(raw_SV) if needs_copy else raw_SV
        token_ids_S, max_S = argmax(x_SV)
        _check_finite(max_S, rows)
        return token_ids_S.tolist()

    def _edit_and_draw(self, raw_SV: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
        x_SV = self._copy(raw_SV)
        _check_finite(x_SV.amax(-1), rows)
        edit_logits(x_SV, rows)
        _lift_contradictions(x_SV, raw_SV, rows)
        kinds: dict[Way, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(_way_of(row), []).append(index)
        chosen: dict[int, int] = {}
        for way, group in kinds.items():
            group_SV = x_SV if len(group) == len(rows) else x_SV[group]
            chosen |= zip(group, way(group_SV, [rows[i] for i in group]), strict=True)
        return [chosen[index] for index in range(len(rows))]

    def _copy(self, raw_SV: torch.Tensor) -> torch.Tensor:
        """Copy to float32, into memory that is kept: fresh pages would cost more than the copy."""
        if self._scratch_BV.shape[0] < raw_SV.shape[0] or self._scratch_BV.device != raw_SV.device:
            self._scratch_BV = torch.empty(raw_SV.shape, dtype=torch.float32, device=raw_SV.device)
        return self._scratch_BV[: raw_SV.shape[0]].copy_(raw_SV)


def argmax(x_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's first largest logit: its id and its value; a NaN counts as the largest."""
    if x_SV.device.type != "cpu":
        found = x_SV.max(-1)
        return found.indices, found.values
    # numpy's is vectorised: ten times as fast as torch's on a CPU.
    ids_S = torch.from_numpy(x_SV.numpy().argmax(-1))
    return ids_S, x_SV.gather(-1, ids_S.unsqueeze(-1)).squeeze(-1)


def _draw_greedily(x_SV: torch.Tensor, _rows: Sequence[SamplingRow]) -> list[int]:
    return argmax(x_SV)[0].tolist()


def _way_of(row: SamplingRow) -> Way:
    if row.is_greedy:
        return _draw_greedily
    return draw_truncated if is_truncated(row) else draw_from_all


def _check_finite(max_S: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    is_finite = max_S.isfinite().tolist()
    if not all(is_finite):
        raise BadLogitsError(
            [row.seq_id for row, fine in zip(rows, is_finite, strict=True) if not fine]
        )


def _lift_contradictions(
    x_SV: torch.Tensor, raw_SV: torch.Tensor, rows: Sequence[SamplingRow]
) -> None:
    """Where constraints exclude every token, keep `allowed_token_ids` alone.

    For example when min_tokens holds back the only allowed token, or a bad word is all that is
    allowed: the request asked for the impossible, and its neighbours must not suffer.
    """
    if not any(row.is_edited for row in rows):
        return
    for index in (x_SV.amax(-1) == float("-inf")).nonzero().flatten().tolist():
        x_SV[index] = raw_SV[index]
        if len(rows[index].allowed_ids):
            keep_only(x_SV[index], rows[index])


def _chosen_logprobs(
    logits_BV: torch.Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int]
) -> dict[int, TokenLogprobs]:
    wanted = {
        index: row.params.logprobs
        for index, row in enumerate(rows)
        if row.params.logprobs is not None
    }
    if not wanted:
        return {}
    part = list(wanted)
    found = token_logprobs(logits_BV[part], [token_ids[i] for i in part], list(wanted.values()))
    return dict(zip(part, found, strict=True))
