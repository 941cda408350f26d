"""Queries, keys and values of normed tokens: product, rotation, and the way into the cache.

One token's take one launch, if nothing must be known of a whole head: a program computes both
numbers of each pair that is turned.

Legend: T tokens, E hidden size, I inputs, O outputs, P positions, R rotated dims, D head dim.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.launch import dependent_launch
from quire_engine.kernels.gpu.linear import GemvParts, GpuLinear
from quire_engine.kernels.gpu.linear_gemv import multiply_row, uses_tensor_cores
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.prefetch import LINE_BYTES
from quire_engine.kernels.gpu.rotary import (
    CacheLayer,
    angles_at,
    place_in_cache,
    rotate_and_store,
    store_as,
)
from quire_engine.kernels.gpu.row_products import total_of_rows
from quire_engine.model.fp8 import FP8_MAX


class QkvProjection:
    """The first product of an attention layer, and what becomes of it."""

    def __init__(
        self,
        linear: GpuLinear,
        norm: Norm,
        cos_sin_PR: torch.Tensor,
        *,
        num_heads: int,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        self._linear, self._norm, self._cos_sin_PR = linear, norm, cos_sin_PR
        self._num_heads, self._q_norm, self._k_norm = num_heads, q_norm, k_norm

    def __call__(
        self,
        x_TE: torch.Tensor,
        qkv_T: torch.Tensor,
        positions_T: torch.Tensor,
        slots_T: torch.Tensor,
        cache: CacheLayer,
    ) -> None:
        """Write queries, keys and values of all tokens, and store the latter two.

        `qkv_T` is (T, (H + 2N) * D); see `rotate_and_store` for slots.
        """
        parts = self._linear.gemv_parts(x_TE.shape[0])
        has_whole_pairs = self._cos_sin_PR.shape[1] == cache.k_BSND.shape[3]
        if parts is not None and has_whole_pairs and self._q_norm is None:
            rotated_gemv(
                x_TE[0], parts, self._norm, qkv_T[0], positions_T, slots_T, self._cos_sin_PR, cache
            )
            return
        self._linear(x_TE, qkv_T, norm=self._norm)
        rotate_and_store(
            qkv_T,
            positions_T,
            slots_T,
            self._cos_sin_PR,
            cache,
            num_heads=self._num_heads,
            q_norm_D=None if self._q_norm is None else self._q_norm.weight_E,
            k_norm_D=None if self._k_norm is None else self._k_norm.weight_E,
            eps=0.0 if self._q_norm is None else self._q_norm.eps,
        )


def rotated_gemv(
    x_I: torch.Tensor,
    parts: GemvParts,
    norm: Norm,
    qkv_O: torch.Tensor,
    positions_1: torch.Tensor,
    slots_1: torch.Tensor,
    cos_sin_PD: torch.Tensor,
    cache: CacheLayer,
) -> None:
    """Write W norm(x) + b of one token, turned by its position, and store keys and values.

    Whole heads are turned. Nothing is stored in a negative slot.
    """
    _, block_size, num_kv_heads, head_dim = cache.k_BSND.shape
    num_rows, width = parts.weight_OI.shape
    tiles, num_pairs = parts.tiles, num_rows // 2
    pairs = max(tiles.rows // 2, 1)
    is_even = width % tiles.block == 0 and num_pairs % pairs == 0
    _rotated_gemv_kernel[(triton.cdiv(num_pairs, pairs),)](
        x_I,
        norm.weight_E,
        parts.weight_OI,
        x_I if parts.scale is None else parts.scale,
        x_I if parts.bias_O is None else parts.bias_O,
        qkv_O,
        positions_1,
        slots_1,
        cos_sin_PD,
        cache.k_BSND,
        cache.v_BSND,
        cos_sin_PD if cache.k_scale is None else cache.k_scale,
        cos_sin_PD if cache.v_scale is None else cache.v_scale,
        *cache.k_BSND.stride()[:3],
        norm.eps,
        NUM_HEADS=num_rows // head_dim - 2 * num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        WIDTH=width,
        PAIRS=pairs,
        BLOCK=tiles.block,
        PREFETCH=tiles.prefetch if is_even and x_I.device.type != "cpu" else 0,
        LINE=LINE_BYTES.value // parts.weight_OI.element_size(),
        IS_EVEN=is_even,
        SCALE_DIMS=0 if parts.scale is None else parts.scale.dim(),
        HAS_BIAS=parts.bias_O is not None,
        HAS_CACHE_SCALE=cache.k_scale is not None,
        FP8_LIMIT=FP8_MAX if cache.k_BSND.dtype == torch.float8_e4m3fn else 0.0,
        TENSOR_CORES=uses_tensor_cores(tiles, parts.weight_OI, parts.scale),
        num_warps=tiles.num_warps,
        **dependent_launch(x_I.device),
    )


@triton.jit(
    do_not_specialize=["eps"],
    do_not_specialize_on_alignment=["k_scale_ptr", "v_scale_ptr"],
)
def _rotated_gemv_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    qkv_ptr,
    positions_ptr,
    slots_ptr,
    cos_sin_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    cache_stride_b,
    cache_stride_s,
    cache_stride_n,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    SCALE_DIMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CACHE_SCALE: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute PAIRS pairs: a number of a head's first half, and that which is turned with it."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    h, a = pair // HALF, pair % HALF
    exists = h < NUM_HEADS + 2 * NUM_KV_HEADS
    o = h * (2 * HALF) + a
    acc1, acc2, factor = multiply_row(
        (x_ptr, norm_ptr, eps),
        (w_ptr, scale_ptr),
        o,
        HALF,
        exists,
        WIDTH,
        BLOCK,
        PREFETCH,
        LINE,
        IS_EVEN,
        SCALE_DIMS,
        True,
        True,
        TENSOR_CORES,
        PDL,
    )
    position = tl.load(positions_ptr).to(tl.int64)
    slot = tl.load(slots_ptr).to(tl.int64)
    is_value = h >= NUM_HEADS + NUM_KV_HEADS
    cos, sin = angles_at(cos_sin_ptr + position * (2 * HALF) + a, HALF, exists, is_value)
    x1 = total_of_rows(acc1, factor, scale_ptr + o, bias_ptr + o, exists, SCALE_DIMS, HAS_BIAS)
    o2 = o + HALF
    x2 = total_of_rows(acc2, factor, scale_ptr + o2, bias_ptr + o2, exists, SCALE_DIMS, HAS_BIAS)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    store_as(qkv_ptr + o, y1, exists, 1.0, False, 0.0)
    store_as(qkv_ptr + o2, y2, exists, 1.0, False, 0.0)
    cache, is_stored, scale_kv = place_in_cache(
        (k_cache_ptr, v_cache_ptr),
        (k_scale_ptr, v_scale_ptr),
        (cache_stride_b, cache_stride_s, cache_stride_n),
        slot,
        h,
        NUM_HEADS,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        HAS_CACHE_SCALE,
    )
    store_as(cache + a, y1, is_stored, scale_kv, HAS_CACHE_SCALE, FP8_LIMIT)
    store_as(cache + HALF + a, y2, is_stored, scale_kv, HAS_CACHE_SCALE, FP8_LIMIT)
