"""Attention of long prompts from their start, through cuDNN: no key is older than the chunk.

cuDNN plans for each length, which takes tens of milliseconds; so it gets multiples of one length,
all planned before serving, and `prefill_attention` does what is left of a prompt.

Legend: T tokens, C tokens of a chunk, H query heads, N key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk

MIN_TOKENS = 2048
"""Below it, `prefill_attention` is as fast: it takes several short prompts at once."""
MULTIPLE = 1024
MAX_HEAD_DIM = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshChunk:
    """Tokens of a step that begin a sequence: their keys are those of the step."""

    first_token: int
    num_tokens: int


def cut_fresh(
    chunks: Sequence[PrefillChunk], *, min_tokens: int = MIN_TOKENS, multiple: int = MULTIPLE
) -> tuple[list[FreshChunk], list[PrefillChunk]]:
    """Return what long prompts begin with, in multiples of a length, and all that is left."""
    fresh, rest = [], []
    for chunk in chunks:
        num_fresh = chunk.num_tokens // multiple * multiple
        if chunk.position > 0 or num_fresh < min_tokens:
            rest.append(chunk)
            continue
        fresh.append(FreshChunk(first_token=chunk.first_token, num_tokens=num_fresh))
        if num_fresh < chunk.num_tokens:
            rest.append(
                replace(
                    chunk,
                    first_token=chunk.first_token + num_fresh,
                    num_tokens=chunk.num_tokens - num_fresh,
                    position=num_fresh,
                )
            )
    return fresh, rest


def fresh_attention(
    heads_CXD: torch.Tensor, out_CHD: torch.Tensor, *, num_heads: int, scale: float
) -> None:
    """Write causal attention within a chunk; heads are queries, then keys, then values."""
    _, num_all_heads, _ = heads_CXD.shape
    sizes = (num_heads, (num_all_heads - num_heads) // 2, (num_all_heads - num_heads) // 2)
    q, k, v = (part.transpose(0, 1)[None] for part in heads_CXD.split(sizes, 1))
    backend = SDPBackend.CUDNN_ATTENTION if heads_CXD.is_cuda else SDPBackend.MATH
    with sdpa_kernel(backend):
        attended = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=sizes[0] != sizes[1]
        )
    out_CHD.copy_(attended[0].transpose(0, 1))


@cache
def plan_fresh(
    max_num_tokens: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Make cuDNN plan for every length that `cut_fresh` gives, once; tell whether it can.

    Plans belong to the thread that makes them, and stay.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not is_half or head_dim > MAX_HEAD_DIM or head_dim % 8:
        return False
    if not torch.backends.cudnn.is_available() or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    num_all_heads = num_heads + 2 * num_kv_heads
    heads_TXD = torch.zeros(max_num_tokens, num_all_heads, head_dim, dtype=dtype, device=device)
    out_THD = torch.empty(max_num_tokens, num_heads, head_dim, dtype=dtype, device=device)
    try:
        for length in range(MIN_TOKENS, max_num_tokens + 1, MULTIPLE):
            fresh_attention(heads_TXD[:length], out_THD[:length], num_heads=num_heads, scale=1.0)
    except RuntimeError:  # this cuDNN has no kernel for these shapes
        return False
    return max_num_tokens >= MIN_TOKENS
