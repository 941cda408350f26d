"""Logprobs of sampled tokens, computed on the GPU and read when their step is over.

Legend: S slots that asked, V vocabulary, K most likely tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.gpu.transfer import to_device, to_host

_SLOTS_AT_ONCE = 16
"""Slots whose logits are sorted at the same time: each takes some 20 bytes a token for it."""


class Scores(NamedTuple):
    """Logprobs of the chosen tokens and of the most likely ones."""

    chosen_S: torch.Tensor
    ranks_S: torch.Tensor
    top_SK: torch.Tensor
    top_ids_SK: torch.Tensor


class StepLogprobs:
    """The logprobs of one step, on their way to the CPU."""

    def __init__(
        self,
        num_top: Mapping[int, int],
        tokens_S: torch.Tensor,
        parts: Sequence[Scores],
    ) -> None:
        self._num_top = num_top
        self._tokens_S = to_host(tokens_S)
        self._parts = [Scores(*map(to_host, part)) for part in parts]

    def read(self) -> dict[int, TokenLogprobs]:
        """Return them by slot, once the stream that computed them has got so far."""
        found: dict[int, TokenLogprobs] = {}
        slots, tokens = list(self._num_top), self._tokens_S.tolist()
        for start, part in zip(range(0, len(slots), _SLOTS_AT_ONCE), self._parts, strict=True):
            lines = zip(*(column.tolist() for column in part), strict=True)
            for index, (chosen, rank, top, top_ids) in enumerate(lines, start):
                num = self._num_top[slots[index]]
                found[slots[index]] = TokenLogprobs(
                    token_ids=[tokens[index], *top_ids[:num]],
                    logprobs=[chosen, *top[:num]],
                    ranks=[rank, *range(1, num + 1)],
                )
        return found


def step_logprobs(
    logits_BV: torch.Tensor, tokens_B: torch.Tensor, num_top: Mapping[int, int]
) -> StepLogprobs:
    """Begin to compute the logprobs of the slots in `num_top`, from unmodified logits.

    `num_top` says how many of the most likely tokens a slot wants; -1 is the whole vocabulary.
    """
    vocab_size = logits_BV.shape[-1]
    wanted = {
        slot: vocab_size if num < 0 else min(num, vocab_size) for slot, num in num_top.items()
    }
    slots_S = to_device(np.array(list(wanted), dtype=np.int64), logits_BV.device)
    tokens_S = tokens_B[slots_S]
    parts = []
    for start in range(0, len(wanted), _SLOTS_AT_ONCE):
        part = slice(start, start + _SLOTS_AT_ONCE)
        most = max(list(wanted.values())[part])
        parts.append(score_tokens(logits_BV[slots_S[part]], tokens_S[part], most))
    return StepLogprobs(wanted, tokens_S, parts)


def score_tokens(logits_SV: torch.Tensor, tokens_S: torch.Tensor, num_top: int) -> Scores:
    """Return logprobs and ranks as `sampling.logprobs.token_logprobs`, without waiting."""
    x_SV = logits_SV.float()
    norm_S1 = x_SV.logsumexp(-1, keepdim=True)
    tokens_S1 = tokens_S.long().unsqueeze(-1)
    keys_SV = _keys(x_SV)
    top_ids_SK = keys_SV.topk(num_top, -1).indices
    chosen_S1 = x_SV.gather(-1, tokens_S1)
    return Scores(
        chosen_S=(chosen_S1 - norm_S1).squeeze(-1),
        ranks_S=1 + (keys_SV > keys_SV.gather(-1, tokens_S1)).sum(-1),
        top_SK=x_SV.gather(-1, top_ids_SK) - norm_S1,
        top_ids_SK=top_ids_SK,
    )


def _keys(x_SV: torch.Tensor) -> torch.Tensor:
    """Return int64 that order as (logit, then lower id): all differ, so ties need no care."""
    # Adding 0 makes -0.0 the 0.0 that it equals.
    bits_SV = (x_SV + 0.0).view(torch.int32)
    ordered_SV = bits_SV ^ ((bits_SV >> 31) & 0x7FFFFFFF)
    ids_V = torch.arange(x_SV.shape[-1], dtype=torch.int64, device=x_SV.device)
    return (ordered_SV.long() << 32) - ids_V
