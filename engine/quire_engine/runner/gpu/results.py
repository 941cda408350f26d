"""Brings sampled tokens back to the CPU on a stream of their own.

Legend: S slots that sample.
"""

from collections.abc import Sequence

import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.gpu.sampler_logprobs import StepLogprobs
from quire_engine.runner.plan import StepResult
from quire_engine.runner.sampling.sampler import BadLogitsError

NUM_BUFFERS = 4
"""More than steps can be in flight."""


class CopiedStep:
    """The tokens of one step, on their way."""

    def __init__(
        self,
        host_2S: torch.Tensor,
        copied: "torch.cuda.Event | None",
        seq_ids: Sequence[int],
        logprobs: StepLogprobs | None,
        prompt_logprobs: dict[int, list[TokenLogprobs]],
    ) -> None:
        self._host_2S, self._copied, self._seq_ids = host_2S, copied, seq_ids
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs

    def wait(self) -> StepResult:
        """Return the tokens, as soon as they are here.

        Raises:
            BadLogitsError: the model computed NaN or infinity for a sequence.
        """
        if self._copied is not None:
            self._copied.synchronize()
        num_slots = len(self._seq_ids)
        tokens, is_bad = self._host_2S[:, :num_slots].tolist()
        if any(is_bad):
            raise BadLogitsError(
                [seq_id for seq_id, bad in zip(self._seq_ids, is_bad, strict=True) if bad]
            )
        logprobs = self._logprobs.read() if self._logprobs is not None else {}
        return StepResult(
            token_ids=dict(zip(self._seq_ids, tokens, strict=True)),
            logprobs={self._seq_ids[slot]: scores for slot, scores in logprobs.items()},
            prompt_logprobs=self._prompt_logprobs,
        )


class ResultCopies:
    """Copies the sampled tokens of each step while the next one already runs."""

    def __init__(self, sampled_2S: torch.Tensor) -> None:
        self._sampled_2S = sampled_2S
        self._is_cuda = sampled_2S.is_cuda
        if not self._is_cuda:
            return
        self._stream = torch.cuda.Stream(sampled_2S.device)
        self._host = [
            torch.empty(sampled_2S.shape, dtype=torch.int32, pin_memory=True)
            for _ in range(NUM_BUFFERS)
        ]
        self._computed = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]
        self._copied = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]
        self._turn = 0

    def start(
        self,
        seq_ids: Sequence[int],
        logprobs: StepLogprobs | None,
        prompt_logprobs: dict[int, list[TokenLogprobs]],
    ) -> CopiedStep:
        """Copy what the current stream has sampled by now."""
        if not self._is_cuda:
            tokens_2S = self._sampled_2S.clone()
            return CopiedStep(tokens_2S, None, seq_ids, logprobs, prompt_logprobs)
        turn = self._turn
        self._turn = (turn + 1) % NUM_BUFFERS
        self._computed[turn].record()
        self._stream.wait_event(self._computed[turn])
        with torch.cuda.stream(self._stream):
            self._host[turn].copy_(self._sampled_2S, non_blocking=True)
            self._copied[turn].record()
        copied = self._copied[turn]
        return CopiedStep(self._host[turn], copied, seq_ids, logprobs, prompt_logprobs)

    def hold_sampling(self) -> None:
        """Keep the current stream from sampling before the last tokens are copied."""
        if self._is_cuda:
            torch.cuda.current_stream().wait_event(self._copied[self._turn - 1])
