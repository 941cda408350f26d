"""Noise of a draw inside kernels: the hash that `runner/sampling/noise.py` documents.

Integers equal the CPU's bit for bit. The two logarithms are computed here, to about one unit in
the last place: the hardware's own would be off by 1e-5 where the winner of a draw lies.
"""

import triton
import triton.language as tl

LANE_0 = tl.constexpr(0x9E3779B9)
LANE_1 = tl.constexpr(0x7F4A7C15)
_TOKEN_FACTOR = tl.constexpr(0x9E3779B1)
_FACTOR_1 = tl.constexpr(0x85EBCA6B)
_FACTOR_2 = tl.constexpr(0xC2B2AE35)
_LARGEST_V = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def mix(h):
    """Spread 32 bits over 32 bits, as `noise.mix`; takes and returns uint32."""
    h ^= h >> 16
    h *= _FACTOR_1
    h ^= h >> 13
    h *= _FACTOR_2
    return h ^ (h >> 16)


@triton.jit
def draw_key(seed_lane, position, LANE: tl.constexpr):
    """Return one lane of the key of a draw; `seed_lane` is mix(mix(low(seed) ^ c) ^ high(seed))."""
    return mix(seed_lane ^ mix(position + LANE))


@triton.jit
def gumbel(token, key_0, key_1):
    """Return float32 noise for uint32 token ids."""
    h = token * _TOKEN_FACTOR + key_0
    h ^= h >> 16
    h = h * _FACTOR_1 + key_1
    h ^= h >> 13
    h *= _FACTOR_2
    h ^= h >> 16
    number = (h & 0x7FFFFFFF).to(tl.int32)
    v = tl.minimum((number.to(tl.float32) + 0.5) * (2.0**-31), _LARGEST_V)
    return -natural_log(-log_one_minus(v))


@triton.jit
def log_one_minus(v):
    """Return log(1 - v) for v in (0, 1)."""
    u = 1.0 - v
    # What rounding 1 - v lost: without it the result is worthless for a small v.
    return natural_log(u) + ((1.0 - u) - v)


@triton.jit
def natural_log(x):
    """Return log(x) for a positive, normal x: a polynomial of degree 9 on [sqrt(1/2), sqrt(2))."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    e = exponent.to(tl.float32)
    tail = p * f * square + e * -2.12194440e-4 - 0.5 * square
    return f + tail + e * 0.693359375
