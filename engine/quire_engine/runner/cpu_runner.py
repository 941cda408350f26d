"""Executes plans on the CPU: input rows, one forward pass, sampling."""

from collections.abc import Sequence

import torch

from quire_engine.core.messages import Roofline, TokenLogprobs
from quire_engine.runner.input_batch import Chunk, InputBatch
from quire_engine.runner.memory import Limits
from quire_engine.runner.plan import ImmediateRunner, StepPlan, StepResult
from quire_engine.runner.sampling.logprobs import prompt_logprobs
from quire_engine.runner.sampling.sampler import Sampler
from quire_engine.runner.torch_model import StepModel

PROMPT_POSITIONS_AT_ONCE = 64
"""Prompt positions whose logits exist at the same time: a row of logits is large."""


class CpuRunner(ImmediateRunner):
    """A `ModelRunner` on one CPU. The result of `execute` is final when it returns."""

    device = "cpu"

    def __init__(
        self,
        model: StepModel,
        sampler: Sampler,
        limits: Limits,
        *,
        max_num_seqs: int,
        block_size: int,
    ) -> None:
        self.limits = limits
        self.load_report: dict[str, float] = {}
        """Seconds that each phase of loading took, in order."""
        self.roofline: Roofline | None = None
        """What its steps read and compute; how fast the CPU could be is not known."""
        self._model, self._sampler = model, sampler
        self._batch = InputBatch(
            max_num_seqs=max_num_seqs,
            max_model_len=limits.max_model_len,
            block_size=block_size,
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
            self._model.forward(chunks, self._batch)
            for chunk in chunks:
                self._batch.advance(chunk)
            self._report_prompts(chunks, result)
            self._sample(chunks, result)
        return result

    def _sample(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        sampling = [chunk for chunk in chunks if chunk.samples]
        if not sampling:
            return
        lines = [chunk.first_line + chunk.num_tokens - 1 for chunk in sampling]
        logits_BV = self._model.logits(lines)
        rows = [chunk.row.sampling for chunk in sampling]
        for chunk, sampled in zip(sampling, self._sampler.sample(logits_BV, rows), strict=True):
            seq_id = chunk.row.seq_id
            result.token_ids[seq_id] = sampled.token_id
            if sampled.logprobs is not None:
                result.logprobs[seq_id] = sampled.logprobs
            self._batch.append(chunk.row, sampled.token_id)

    def _report_prompts(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        for chunk in chunks:
            num_top = chunk.row.num_prompt_logprobs
            # The last prompt token predicts the first generated one, which is no prompt token.
            end = min(chunk.end, chunk.row.num_prompt_tokens - 1)
            if num_top is not None and chunk.start < end:
                result.prompt_logprobs[chunk.row.seq_id] = self._prompt_logprobs(
                    chunk, end, num_top
                )

    def _prompt_logprobs(self, chunk: Chunk, end: int, num_top: int) -> list[TokenLogprobs]:
        found: list[TokenLogprobs] = []
        for start in range(chunk.start, end, PROMPT_POSITIONS_AT_ONCE):
            stop = min(start + PROMPT_POSITIONS_AT_ONCE, end)
            line = chunk.first_line + start - chunk.start
            logits_TV = self._model.logits(range(line, line + stop - start))
            next_ids = self._batch.token_ids(chunk.row, start + 1, stop + 1).tolist()
            found += prompt_logprobs(logits_TV, next_ids, num_top)
        return found
