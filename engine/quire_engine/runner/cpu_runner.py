"""Executes plans on the CPU: input rows, one forward pass, sampling."""

from collections.abc import Sequence

import numpy as np
import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.model.decoder import Decoder
from quire_engine.model.layers import MIN_ROWS
from quire_engine.runner.attention import CpuAttention
from quire_engine.runner.input_batch import Chunk, InputBatch
from quire_engine.runner.memory import KvCache, Limits
from quire_engine.runner.plan import StepPlan, StepResult
from quire_engine.runner.sampling.logprobs import prompt_logprobs
from quire_engine.runner.sampling.sampler import Sampler

PROMPT_POSITIONS_AT_ONCE = 64
"""Prompt positions whose logits exist at the same time: a row of logits is large."""


class CpuRunner:
    """A `ModelRunner` on one CPU. The result of `execute` is final when it returns."""

    def __init__(
        self,
        decoder: Decoder,
        sampler: Sampler,
        cache: KvCache,
        limits: Limits,
        *,
        max_num_seqs: int,
    ) -> None:
        self.limits = limits
        self.load_report: dict[str, float] = {}
        """Seconds that each phase of loading took, in order."""
        self._decoder, self._sampler = decoder, sampler
        self._attention = CpuAttention(decoder.spec, cache)
        self._batch = InputBatch(
            max_num_seqs=max_num_seqs,
            max_model_len=limits.max_model_len,
            block_size=cache.block_size,
        )

    @property
    def num_blocks(self) -> int:
        return self.limits.num_blocks

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens of a step, after what the configuration leaves open was settled."""
        return self.limits.max_num_batched_tokens

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. A plan with no tokens only applies its drops."""
        admitted = {item.seq_id: self._sampler.admit(item) for item in plan.admitted}
        self._batch.apply(plan, admitted)
        result = StepResult()
        if plan.num_tokens:
            chunks = self._batch.chunks(plan.num_tokens)
            hidden_TE = self._forward(chunks)
            self._report_prompts(chunks, hidden_TE, result)
            self._sample(chunks, hidden_TE, result)
        return result

    def _forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks' tokens; return hidden states, with padding lines at the end."""
        token_ids = np.concatenate(
            [self._batch.token_ids(chunk.row, chunk.start, chunk.end) for chunk in chunks]
        )
        positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        num_padding = max(0, MIN_ROWS - len(token_ids))
        if num_padding:
            token_ids = np.pad(token_ids, (0, num_padding), mode="edge")
            positions = np.pad(positions, (0, num_padding), mode="edge")
        self._attention.prepare(chunks, len(token_ids))
        hidden_TE = self._decoder.forward(
            torch.from_numpy(token_ids), torch.from_numpy(positions), self._attention
        )
        for chunk in chunks:
            self._batch.advance(chunk)
        return hidden_TE

    def _sample(self, chunks: Sequence[Chunk], hidden_TE: torch.Tensor, result: StepResult) -> None:
        sampling = [chunk for chunk in chunks if chunk.samples]
        if not sampling:
            return
        lines = [chunk.first_line + chunk.num_tokens - 1 for chunk in sampling]
        logits_BV = self._logits(hidden_TE, lines)
        rows = [chunk.row.sampling for chunk in sampling]
        for chunk, sampled in zip(sampling, self._sampler.sample(logits_BV, rows), strict=True):
            seq_id = chunk.row.seq_id
            result.token_ids[seq_id] = sampled.token_id
            if sampled.logprobs is not None:
                result.logprobs[seq_id] = sampled.logprobs
            self._batch.append(chunk.row, sampled.token_id)

    def _logits(self, hidden_TE: torch.Tensor, lines: list[int]) -> torch.Tensor:
        """Return the logits of some lines; rows do not depend on which others are asked for."""
        padded = lines + lines[-1:] * (MIN_ROWS - len(lines))
        return self._decoder.logits(hidden_TE[padded])[: len(lines)]

    def _report_prompts(
        self, chunks: Sequence[Chunk], hidden_TE: torch.Tensor, result: StepResult
    ) -> None:
        for chunk in chunks:
            num_top = chunk.row.num_prompt_logprobs
            # The last prompt token predicts the first generated one, which is no prompt token.
            end = min(chunk.end, chunk.row.num_prompt_tokens - 1)
            if num_top is not None and chunk.start < end:
                result.prompt_logprobs[chunk.row.seq_id] = self._prompt_logprobs(
                    chunk, end, hidden_TE, num_top
                )

    def _prompt_logprobs(
        self, chunk: Chunk, end: int, hidden_TE: torch.Tensor, num_top: int
    ) -> list[TokenLogprobs]:
        found: list[TokenLogprobs] = []
        for start in range(chunk.start, end, PROMPT_POSITIONS_AT_ONCE):
            stop = min(start + PROMPT_POSITIONS_AT_ONCE, end)
            line = chunk.first_line + start - chunk.start
            logits_TV = self._logits(hidden_TE, list(range(line, line + stop - start)))
            next_ids = self._batch.token_ids(chunk.row, start + 1, stop + 1).tolist()
            found += prompt_logprobs(logits_TV, next_ids, num_top)
        return found
