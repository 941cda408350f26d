"""Per-head norm, rotation, and the way of keys and values into the cache, in one pass.

Legend: T tokens, H query heads, N key/value heads, D head dim, P positions, R rotated dims,
B cache blocks, S tokens of a block.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.model.fp8 import FP8_MAX
from quire_engine.model.rope import inverse_frequencies
from quire_engine.model.spec import RopeSpec


@dataclass(frozen=True, slots=True, eq=False)
class CacheLayer:
    """Keys and values of one layer, (blocks, tokens of a block, heads, D) each, any strides.

    `k_scale` and `v_scale` are float32 scalars on the device, with which a cache of 8-bit numbers
    is multiplied when it is read.
    """

    k_BSND: torch.Tensor
    v_BSND: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


def make_cos_sin(
    spec: RopeSpec, max_len: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return (P, R): cosines of the R/2 angles of each position, then their sines."""
    speeds = inverse_frequencies(spec, max_len)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), speeds)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1) * spec.attention_factor
    return cos_sin.to(device, dtype)


def rotate_and_store(
    qkv_T: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    cos_sin_PR: torch.Tensor,
    cache: CacheLayer,
    *,
    num_heads: int,
    q_norm_D: torch.Tensor | None = None,
    k_norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norm and rotate queries and keys in place, and write keys and values to their slots.

    `qkv_T` is (T, (H + 2N) * D): queries, keys, values. A token with a negative slot is padding:
    nothing is stored for it. Slots must be distinct otherwise: two writers of one would race.
    """
    _, block_size, num_kv_heads, head_dim = cache.k_BSND.shape
    num_tokens, rotary_dim = qkv_T.shape[0], cos_sin_PR.shape[1]
    if num_tokens == 0:
        return
    assert qkv_T.shape[1] == (num_heads + 2 * num_kv_heads) * head_dim, "not the heads of this row"
    assert cache.k_BSND.stride() == cache.v_BSND.stride(), "keys and values are laid out alike"
    assert cache.k_BSND.stride(3) == 1, "a head's numbers are contiguous"
    heads = heads_per_program(num_tokens)
    grid = (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, heads))
    _rotate_and_store_kernel[grid](
        qkv_T,
        positions_T,
        slots_T,
        cos_sin_PR,
        qkv_T if q_norm_D is None else q_norm_D,
        qkv_T if k_norm_D is None else k_norm_D,
        cache.k_BSND,
        cache.v_BSND,
        cos_sin_PR if cache.k_scale is None else cache.k_scale,
        cos_sin_PR if cache.v_scale is None else cache.v_scale,
        qkv_T.stride(0),
        *cache.k_BSND.stride()[:3],
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        BLOCK_SIZE=block_size,
        HEADS=heads,
        HALF=triton.next_power_of_2(rotary_dim // 2),
        REST=triton.next_power_of_2(max(head_dim - rotary_dim, 1)),
        HAS_NORM=q_norm_D is not None,
        HAS_SCALE=cache.k_scale is not None,
        FP8_LIMIT=FP8_MAX if cache.k_BSND.dtype == torch.float8_e4m3fn else 0.0,
        num_warps=1 if heads <= 4 else 4,
        **dependent_launch(qkv_T.device),
    )


def heads_per_program(num_tokens: int) -> int:
    """Return how many heads a program takes: few when there are few, to use the whole GPU."""
    return 4 if num_tokens < 512 else 16


def rotate_and_store_reference(
    qkv_T: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    cos_sin_PR: torch.Tensor,
    cache: CacheLayer,
    *,
    num_heads: int,
    q_norm_D: torch.Tensor | None = None,
    k_norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Do what `rotate_and_store` does: float32 inside, rounded once."""
    _, block_size, num_kv_heads, head_dim = cache.k_BSND.shape
    heads_THD = qkv_T.view(qkv_T.shape[0], -1, head_dim)
    sizes = (num_heads, num_kv_heads, num_kv_heads)
    q, k, v = (part.float() for part in heads_THD.split(sizes, 1))
    if q_norm_D is not None and k_norm_D is not None:
        q, k = _norm_heads(q, q_norm_D, eps), _norm_heads(k, k_norm_D, eps)
    cos, sin = cos_sin_PR[positions_T.long()].float().unsqueeze(1).chunk(2, -1)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    heads_THD.copy_(torch.cat((q, k, v), 1))
    for slot, key, value in zip(slots_T.tolist(), k, v, strict=True):
        if slot >= 0:
            block, offset = divmod(slot, block_size)
            _store_reference(cache.k_BSND[block, offset], key, cache.k_scale)
            _store_reference(cache.v_BSND[block, offset], value, cache.v_scale)


def _norm_heads(heads: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, rest = heads.split((half, half, heads.shape[-1] - 2 * half), -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def _store_reference(place: torch.Tensor, values: torch.Tensor, scale: torch.Tensor | None) -> None:
    if scale is not None:
        values = values / scale
    if place.dtype == torch.float8_e4m3fn:
        values = values.clamp(-FP8_MAX, FP8_MAX)
    place.copy_(values.to(place.dtype))


@triton.jit
def _weighted(x, weight_ptr, mask, is_value):
    """Return x times the norm's weight; values are not normed."""
    weight = tl.load(weight_ptr, mask=mask, other=0).to(tl.float32)
    return x * tl.where(is_value, 1.0, weight)


@triton.jit
def angles_at(angles_ptr, half, mask, is_value):
    """Return the cosines and sines of a position; values are not turned."""
    cos = tl.load(angles_ptr, mask=mask, other=0).to(tl.float32)
    sin = tl.load(angles_ptr + half, mask=mask, other=0).to(tl.float32)
    return tl.where(is_value, 1.0, cos), tl.where(is_value, 0.0, sin)


@triton.jit
def store_as(place, y, mask, scale, HAS_SCALE: tl.constexpr, FP8_LIMIT: tl.constexpr):
    """Store numbers in the type of their place, over a scale if the cache has one."""
    if HAS_SCALE:
        y = y / scale
    if FP8_LIMIT > 0:
        y = tl.clamp(y, -FP8_LIMIT, FP8_LIMIT)
    tl.store(place, y.to(place.dtype.element_ty), mask=mask)


@triton.jit
def place_in_cache(
    caches,
    scales,
    strides,
    slot,
    h,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    """Return where a slot has heads `h` of a token, which of these are stored, and their scale.

    A token has queries, then keys, then values. `caches` and `scales` are those of keys and of
    values; `strides` are those of blocks, of tokens and of heads, of both caches.
    """
    is_value = h >= NUM_HEADS + NUM_KV_HEADS
    head = (h - tl.where(is_value, NUM_HEADS + NUM_KV_HEADS, NUM_HEADS)).to(tl.int64)
    start = slot // BLOCK_SIZE * strides[0] + slot % BLOCK_SIZE * strides[1]
    place = tl.where(is_value, caches[1], caches[0]) + start + head * strides[2]
    end = tl.where(slot >= 0, NUM_HEADS + 2 * NUM_KV_HEADS, 0)
    is_stored = (h >= NUM_HEADS) & (h < end)
    scale = 1.0
    if HAS_SCALE:
        scale = tl.where(is_value, tl.load(scales[1]), tl.load(scales[0]))
    return place, is_stored, scale


@triton.jit(do_not_specialize=["eps"])
def _rotate_and_store_kernel(
    qkv_ptr,
    positions_ptr,
    slots_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    qkv_stride_t,
    cache_stride_b,
    cache_stride_s,
    cache_stride_n,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take HEADS heads of one token: the first rotated half, the second, and what is left."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    a = tl.arange(0, HALF)[None, :]
    r = tl.arange(0, REST)[None, :]
    half: tl.constexpr = ROTARY_DIM // 2
    exists = h < NUM_HEADS + 2 * NUM_KV_HEADS
    is_turned = h < NUM_HEADS + NUM_KV_HEADS
    is_value = h >= NUM_HEADS + NUM_KV_HEADS
    mask_a = exists & (a < half)
    mask_r = exists & (r < HEAD_DIM - ROTARY_DIM)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position = tl.load(positions_ptr + t).to(tl.int64)
    slot = tl.load(slots_ptr + t).to(tl.int64)
    row = qkv_ptr + t * qkv_stride_t + h * HEAD_DIM
    x1 = tl.load(row + a, mask=mask_a, other=0).to(tl.float32)
    x2 = tl.load(row + half + a, mask=mask_a, other=0).to(tl.float32)
    if ROTARY_DIM < HEAD_DIM:
        x3 = tl.load(row + ROTARY_DIM + r, mask=mask_r, other=0).to(tl.float32)
    if HAS_NORM:
        total = tl.sum(x1 * x1 + x2 * x2, 1)
        if ROTARY_DIM < HEAD_DIM:
            total += tl.sum(x3 * x3, 1)
        scale = tl.where(is_value, 1.0, tl.rsqrt(total / HEAD_DIM + eps)[:, None])
        norm_ptr = tl.where(h < NUM_HEADS, q_norm_ptr, k_norm_ptr)
        mask_w = mask_a & is_turned
        x1 = _weighted(x1 * scale, norm_ptr + a, mask_w, is_value)
        x2 = _weighted(x2 * scale, norm_ptr + half + a, mask_w, is_value)
        if ROTARY_DIM < HEAD_DIM:
            x3 = _weighted(x3 * scale, norm_ptr + ROTARY_DIM + r, mask_r & is_turned, is_value)
    cos, sin = angles_at(cos_sin_ptr + position * ROTARY_DIM + a, half, a < half, is_value)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    store_as(row + a, y1, mask_a & is_turned, 1.0, False, 0.0)
    store_as(row + half + a, y2, mask_a & is_turned, 1.0, False, 0.0)
    if ROTARY_DIM < HEAD_DIM and HAS_NORM:
        store_as(row + ROTARY_DIM + r, x3, mask_r & is_turned, 1.0, False, 0.0)
    cache, is_stored, scale_kv = place_in_cache(
        (k_cache_ptr, v_cache_ptr),
        (k_scale_ptr, v_scale_ptr),
        (cache_stride_b, cache_stride_s, cache_stride_n),
        slot,
        h,
        NUM_HEADS,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        HAS_SCALE,
    )
    store_as(cache + a, y1, mask_a & is_stored, scale_kv, HAS_SCALE, FP8_LIMIT)
    store_as(cache + half + a, y2, mask_a & is_stored, scale_kv, HAS_SCALE, FP8_LIMIT)
    if ROTARY_DIM < HEAD_DIM:
        store_as(cache + ROTARY_DIM + r, x3, mask_r & is_stored, scale_kv, HAS_SCALE, FP8_LIMIT)
