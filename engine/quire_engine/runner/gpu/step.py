"""One forward pass and its sampling, as launches on fixed memory: eager, or captured in graphs.

Legend: B batch slots, S slots that sample, V vocabulary.
"""

from collections.abc import Sequence

import torch

from quire_engine.kernels.gpu.batch_inputs import commit_tokens
from quire_engine.runner.gpu.attention import GpuAttention
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.decoder import GpuDecoder
from quire_engine.runner.gpu.layout import StepLayout
from quire_engine.runner.gpu.rows import Rows
from quire_engine.runner.gpu.sampler import GpuSampler, PlainMode
from quire_engine.runner.gpu.sampler_logprobs import StepLogprobs
from quire_engine.runner.gpu.step_inputs import StepInputs


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

    def decode(self, num_slots: int) -> None:
        """Compute one token of each of the first `num_slots` slots, up to the logits."""
        tokens = self._inputs.prepare(
            num_slots=num_slots,
            num_tokens=num_slots,
            max_query_len=1,
            block_size=self._cache.block_size,
        )
        self._attention.plan(num_slots)
        hidden_TE = self._decoder.forward(tokens, self._cache.layers, self._attention)
        self._decoder.logits(hidden_TE, self.logits_SV[:num_slots])

    def mixed(self, layout: StepLayout, *, keeps_hidden: bool) -> torch.Tensor | None:
        """Compute a step of any kind, up to the logits of what is sampled.

        Returns the hidden states of all tokens if they are kept, which costs a whole last layer.
        """
        num_lines = len(layout.sampling_S)
        tokens = self._inputs.prepare(
            num_slots=layout.num_slots,
            num_tokens=layout.num_tokens,
            max_query_len=int(layout.query_lens_B.max()),
            block_size=self._cache.block_size,
        )
        lines_S = self._inputs.last_lines_S.device[:num_lines]
        lines_SE = self._lines_SE[:num_lines]
        attention, caches = self._attention, self._cache.layers
        attention.plan(layout.num_decodes)
        hidden_TE = None
        if keeps_hidden:
            hidden_TE = self._decoder.forward(tokens, caches, attention)
            torch.index_select(hidden_TE, 0, lines_S, out=lines_SE)
        else:
            attention.plan_lines(num_lines)
            self._decoder.forward_lines(
                tokens, caches, attention, attention.attend_lines, lines_S, lines_SE
            )
        if num_lines:
            self._decoder.logits(lines_SE, self.logits_SV[:num_lines])
        return hidden_TE

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
