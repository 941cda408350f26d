"""One forward pass and its sampling, as launches on fixed memory: eager, or captured in graphs.

Legend: B batch slots, S slots that sample, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from quire_engine.kernels.gpu.batch_inputs import commit_tokens
from quire_engine.runner.gpu.attention import GpuAttention
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.decoder import GpuDecoder, Tokens
from quire_engine.runner.gpu.layout import StepLayout
from quire_engine.runner.gpu.rows import Rows
from quire_engine.runner.gpu.sampler import GpuSampler, PlainMode
from quire_engine.runner.gpu.sampler_logprobs import StepLogprobs
from quire_engine.runner.gpu.step_inputs import StepInputs


class Pieces(Protocol):
    """Pieces of forward passes, captured for some numbers of tokens."""

    def piece_size_for(self, num_tokens: int) -> int | None:
        """Return the number of tokens to pad to; None if there is none."""
        ...

    def piece(self, index: int, num_tokens: int) -> None:
        """Launch a piece."""
        ...


class GpuStep:
    """Launches the parts of a step; what they read and write stays in place."""

    def __init__(
        self,
        decoder: GpuDecoder,
        cache: GpuKvCache,
        attention: GpuAttention,
        sampler: GpuSampler,
        inputs: StepInputs,
        rows: Rows,
    ) -> None:
        self._decoder, self._cache, self._attention = decoder, cache, attention
        self._sampler, self._inputs, self._rows = sampler, inputs, rows
        num_slots, device = inputs.max_num_seqs, decoder.device
        self.logits_SV = torch.empty(
            num_slots, decoder.spec.vocab_size, dtype=decoder.dtype, device=device
        )
        self.sampled_2S = torch.zeros(2, num_slots, dtype=torch.int32, device=device)
        """Tokens, and whether the logits behind them were broken."""
        self._lines_SE = torch.empty(
            num_slots, decoder.spec.hidden_size, dtype=decoder.dtype, device=device
        )

    @property
    def max_num_slots(self) -> int:
        return self._inputs.max_num_seqs

    @property
    def num_pieces(self) -> int:
        return self._decoder.num_pieces

    def piece(self, index: int, num_tokens: int) -> None:
        """Compute a piece of a forward pass; see `GpuDecoder.piece`."""
        self._decoder.piece(index, self._inputs.tokens(num_tokens), self._cache.layers)

    def decode(self, num_slots: int) -> None:
        """Compute one token of each of the first `num_slots` slots, up to the logits."""
        tokens = self._inputs.prepare(
            num_slots=num_slots,
            num_tokens=num_slots,
            max_query_len=1,
            block_size=self._cache.block_size,
        )
        self._attention.plan_decodes(num_slots)
        hidden_TE = self._decoder.forward(tokens, self._cache.layers, self._attention)
        self._decoder.logits(hidden_TE, self.logits_SV[:num_slots])

    def mixed(self, layout: StepLayout, pieces: Pieces | None = None) -> None:
        """Compute a step of any kind, up to the logits of what is sampled."""
        num_tokens, num_lines = layout.num_tokens, len(layout.sampling_S)
        size = pieces.piece_size_for(num_tokens) if pieces is not None else None
        tokens = self._prepare(layout, padded_to=size or 0)
        if pieces is not None and size is not None:
            piece = partial(pieces.piece, num_tokens=size)
        else:
            piece = partial(self._decoder.piece, tokens=tokens, caches=self._cache.layers)
        attention = self._attention
        attention.plan(layout.num_decodes)
        attention.plan_lines(num_lines)
        lines_S, lines_SE = self._lines(layout)
        self._decoder.forward_lines(
            num_tokens, piece, attention, attention.attend_lines, lines_S, lines_SE
        )
        if num_lines:
            self._decoder.logits(lines_SE, self.logits_SV[:num_lines])

    def mixed_whole(self, layout: StepLayout) -> torch.Tensor:
        """Compute a step as `mixed`, and return the hidden states of all its tokens."""
        tokens = self._prepare(layout)
        self._attention.plan(layout.num_decodes)
        hidden_TE = self._decoder.forward(tokens, self._cache.layers, self._attention)
        lines_S, lines_SE = self._lines(layout)
        if len(lines_S):
            torch.index_select(hidden_TE, 0, lines_S, out=lines_SE)
            self._decoder.logits(lines_SE, self.logits_SV[: len(lines_S)])
        return hidden_TE

    def _prepare(self, layout: StepLayout, padded_to: int = 0) -> Tokens:
        return self._inputs.prepare(
            num_slots=layout.num_slots,
            num_tokens=layout.num_tokens,
            max_query_len=int(layout.query_lens_B.max()),
            block_size=self._cache.block_size,
            padded_to=padded_to,
        )

    def _lines(self, layout: StepLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lines that are sampled from, and the place of their hidden states."""
        num_lines = len(layout.sampling_S)
        return self._inputs.last_lines_S.device[:num_lines], self._lines_SE[:num_lines]

    def sample(self, num_slots: int, mode: PlainMode) -> None:
        """Choose the tokens of the first `num_slots` sampling slots and append them."""
        rows_S = self._inputs.sampling_rows_S.device[:num_slots]
        tokens_S, is_bad_S = self.sampled_2S[:, :num_slots]
        logits_SV = self.logits_SV[:num_slots]
        self._sampler.sample(logits_SV, rows_S, tokens_S, is_bad_S, mode)
        self._commit(rows_S, tokens_S)

    def sample_full(self, rows: Sequence[int]) -> StepLogprobs | None:
        """Sample as rows ask for that a captured graph cannot; `rows` are all that sample."""
        num_slots = len(rows)
        rows_S = self._inputs.sampling_rows_S.device[:num_slots]
        tokens_S, is_bad_S = self.sampled_2S[:, :num_slots]
        logprobs = self._sampler.sample_full(
            self.logits_SV[:num_slots],
            rows_S,
            rows,
            self._rows.tokens_RL,
            tokens_S,
            is_bad_S,
        )
        self._commit(rows_S, tokens_S)
        return logprobs

    def _commit(self, rows_S: torch.Tensor, tokens_S: torch.Tensor) -> None:
        lens_S = self._inputs.sampling_lens_S.device[: len(rows_S)]
        commit_tokens(rows_S, lens_S, tokens_S, self._rows.tokens_RL)
