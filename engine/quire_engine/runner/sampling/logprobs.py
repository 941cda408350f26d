"""Logprobs of chosen tokens and of the most likely ones, from unmodified logits.

Shapes: T positions, V vocabulary, K top tokens. Equal logits are ranked by token id, so ranks are
unique and the greedy token always has rank 1.
"""

from collections.abc import Sequence

import torch

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.sampling.threads import few_threads

_POSITIONS_AT_ONCE = 64


def prompt_logprobs(
    logits_TV: torch.Tensor, token_ids: Sequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Return logprobs of `token_ids[t]` under `logits_TV[t]`, for every t.

    Row t holds the logits computed at the position before `token_ids[t]`. The work is done in
    slices, so memory stays small for long chunks.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _POSITIONS_AT_ONCE):
        end = start + _POSITIONS_AT_ONCE
        part_TV, ids = logits_TV[start:end], token_ids[start:end]
        with few_threads(part_TV):
            found += token_logprobs(part_TV, ids, [num_top] * len(ids))
    return found


def token_logprobs(
    logits_TV: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return, for each row, the chosen token's logprob and rank, then the `num_top` best.

    A `num_top` of -1 is the whole vocabulary, 0 none; more than the vocabulary is all of it.
    """
    x_TV = logits_TV.to(torch.float32)
    vocab_size = x_TV.shape[-1]
    wanted = [vocab_size if num < 0 else min(num, vocab_size) for num in num_top]
    chosen_T1 = torch.tensor(token_ids, dtype=torch.int64, device=x_TV.device).unsqueeze(-1)
    chosen_x_T1 = x_TV.gather(-1, chosen_T1)
    norm_T1 = x_TV.logsumexp(-1, keepdim=True)
    ranks = _ranks(x_TV, chosen_x_T1, chosen_T1).tolist()
    chosen = (chosen_x_T1 - norm_T1).squeeze(-1).tolist()
    top_x_TK, top_ids_TK = top_tokens(x_TV, max(wanted, default=0))
    top, top_ids = (top_x_TK - norm_T1).tolist(), top_ids_TK.tolist()
    return [
        TokenLogprobs(
            token_ids=[token_id, *top_ids[row][:num]],
            logprobs=[chosen[row], *top[row][:num]],
            ranks=[ranks[row], *range(1, num + 1)],
        )
        for row, (token_id, num) in enumerate(zip(token_ids, wanted, strict=True))
    ]


def top_tokens(x_TV: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values and ids of the `num_top` largest, equal ones by ascending id."""
    if num_top == 0:
        empty = x_TV[:, :0]
        return empty, empty.to(torch.int64)
    if num_top >= x_TV.shape[-1]:
        ordered = x_TV.sort(dim=-1, descending=True, stable=True)
        return ordered.values, ordered.indices
    values_TK, ids_TK = x_TV.topk(num_top, -1)
    _settle_last_ties(x_TV, values_TK, ids_TK)
    # By id first: the stable sort by value then leaves equal values in that order.
    by_id = ids_TK.sort(-1)
    ordered = values_TK.gather(-1, by_id.indices).sort(dim=-1, descending=True, stable=True)
    return ordered.values, by_id.values.gather(-1, ordered.indices)


def _settle_last_ties(x_TV: torch.Tensor, values_TK: torch.Tensor, ids_TK: torch.Tensor) -> None:
    """Where equals of the smallest taken value were left out, take those with the lowest ids."""
    last_T1 = values_TK.amin(-1, keepdim=True)
    taken_TK = values_TK == last_T1
    tied_T = (x_TV == last_T1).sum(-1) > taken_TK.sum(-1)
    for row in tied_T.nonzero().flatten().tolist():
        equals = (x_TV[row] == last_T1[row]).nonzero().flatten()
        ids_TK[row, taken_TK[row]] = equals[: int(taken_TK[row].sum())]


def _ranks(x_TV: torch.Tensor, chosen_x_T1: torch.Tensor, chosen_T1: torch.Tensor) -> torch.Tensor:
    ranks_T = 1 + (x_TV > chosen_x_T1).sum(-1)
    equal_TV = x_TV == chosen_x_T1
    for row in (equal_TV.sum(-1) > 1).nonzero().flatten().tolist():
        ranks_T[row] += equal_TV[row, : int(chosen_T1[row])].sum()
    return ranks_T
