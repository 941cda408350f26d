"""Logprobs of prompts: rare, so the GPU is waited for.

Legend: T tokens of a step, E hidden size, V vocabulary, S lines of the logits' buffer.
"""

from collections.abc import Iterable

import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.gpu.decoder import GpuDecoder
from quire_engine.runner.gpu.layout import StepLayout
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.logprobs import prompt_logprobs

MAX_LINES = 64
"""Prompt positions whose logits exist at the same time."""


class PromptScores:
    """Scores the prompts of the sequences that asked for it."""

    def __init__(self, decoder: GpuDecoder, logits_SV: torch.Tensor) -> None:
        self._decoder, self._logits_SV = decoder, logits_SV
        self._sequences: dict[int, AdmittedSequence] = {}

    @property
    def has_any(self) -> bool:
        return bool(self._sequences)

    def add(self, sequence: AdmittedSequence) -> None:
        """Take note of a new sequence."""
        if sequence.params.prompt_logprobs is not None:
            self._sequences[sequence.seq_id] = sequence

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Forget sequences; unknown ids are ignored."""
        if self._sequences:
            for seq_id in seq_ids:
                self._sequences.pop(seq_id, None)

    def score(self, layout: StepLayout, hidden_TE: torch.Tensor) -> dict[int, list[TokenLogprobs]]:
        """Return the logprobs of the prompt positions that a step computed, by sequence.

        Call after the step has sampled: the buffer of its logits is used.
        """
        found: dict[int, list[TokenLogprobs]] = {}
        for slot, seq_id in enumerate(layout.slot_seq_ids):
            sequence = self._sequences.get(seq_id)
            if sequence is None:
                continue
            end = int(layout.seq_lens_B[slot])
            start = end - int(layout.query_lens_B[slot])
            # The last prompt token predicts the first generated one, which is no prompt token.
            end = min(end, sequence.num_prompt_tokens - 1)
            if start < end:
                line = int(layout.first_lines_B[slot])
                found[seq_id] = self._score(sequence, hidden_TE[line:], start, end)
        return found

    def _score(
        self, sequence: AdmittedSequence, hidden_TE: torch.Tensor, first: int, end: int
    ) -> list[TokenLogprobs]:
        num_top = sequence.params.prompt_logprobs
        assert num_top is not None, "the sequence asked for no logprobs"
        found: list[TokenLogprobs] = []
        step = min(MAX_LINES, self._logits_SV.shape[0])
        for start in range(first, end, step):
            stop = min(start + step, end)
            logits_SV = self._logits_SV[: stop - start]
            self._decoder.logits(hidden_TE[start - first : stop - first], logits_SV)
            found += prompt_logprobs(logits_SV, sequence.token_ids[start + 1 : stop + 1], num_top)
        return found
