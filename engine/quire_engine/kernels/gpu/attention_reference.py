"""What paged attention computes, in plain torch: the reference of both attention kernels.

Legend: T tokens, R rows, M blocks of a row, L keys, H query heads, N key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Neighbouring tokens of one sequence, the last of which is the sequence's newest."""

    row: int
    first_token: int
    """Index of the first of them among the step's tokens."""
    num_tokens: int
    num_keys: int
    """Length of the sequence, these tokens included."""


def attention_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table_RM: torch.Tensor,
    sequences: Sequence[Queries],
    *,
    scale: float,
    window: int | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the attention of every listed token in float32; tokens that are not listed get 0."""
    out_THD = torch.zeros(q_THD.shape, dtype=torch.float32, device=q_THD.device)
    for queries in sequences:
        tokens = slice(queries.first_token, queries.first_token + queries.num_tokens)
        blocks = block_table_RM[queries.row]
        k_LHD = _gather(k_cache, blocks, queries.num_keys, k_scale, q_THD.shape[1])
        v_LHD = _gather(v_cache, blocks, queries.num_keys, v_scale, q_THD.shape[1])
        scores_HTL = torch.einsum("thd,lhd->htl", q_THD[tokens].double(), k_LHD) * scale
        hidden_TL = ~_visible(queries, window).to(q_THD.device)
        scores_HTL.masked_fill_(hidden_TL, float("-inf"))
        weights_HTL = scores_HTL.softmax(-1)
        out_THD[tokens] = torch.einsum("htl,lhd->thd", weights_HTL, v_LHD).float()
    return out_THD


def _gather(
    cache: torch.Tensor,
    blocks: torch.Tensor,
    num_keys: int,
    scale: torch.Tensor | None,
    num_heads: int,
) -> torch.Tensor:
    """Return the first keys of a sequence, (L, H, D) in float64."""
    _, block_size, num_kv_heads, head_dim = cache.shape
    used = blocks[: -(-num_keys // block_size)].long()
    lines_LND = cache[used].double().reshape(-1, num_kv_heads, head_dim)[:num_keys]
    if scale is not None:
        lines_LND = lines_LND * scale.double()
    return lines_LND.repeat_interleave(num_heads // num_kv_heads, dim=1)


def _visible(queries: Queries, window: int | None) -> torch.Tensor:
    positions_T1 = torch.arange(queries.num_keys - queries.num_tokens, queries.num_keys)[:, None]
    keys_L = torch.arange(queries.num_keys)
    visible_TL = keys_L <= positions_T1
    if window is not None:
        visible_TL &= keys_L > positions_T1 - window
    return visible_TL
