"""Random numbers without state: a hash of (seed, position, token id).

A draw depends on nothing else, so a seeded request gives the same tokens whatever else is in the
batch, before and after preemption, and on any device. All integer arithmetic is modulo 2**32;
`>>` is the logical shift. A kernel repeats it bit for bit:

    mix(h)       h ^= h >> 16; h *= 0x85EBCA6B; h ^= h >> 13; h *= 0xC2B2AE35; h ^= h >> 16
                 (murmur3's finaliser)
    lane(c)      mix(mix(mix(low(seed) ^ c) ^ high(seed)) ^ mix(position + c))
    key          (lane(0x9E3779B9), lane(0x7F4A7C15)), once per row and step
    hash(token)  h = token * 0x9E3779B1 + key[0]; h ^= h >> 16; h *= 0x85EBCA6B; h += key[1];
                 h ^= h >> 13; h *= 0xC2B2AE35; h ^= h >> 16
    v            min((float32(hash & 0x7FFFFFFF) + 0.5) * 2**-31, 1 - 2**-24), in float32
    noise        -log(-log1p(-v)), in float32: Gumbel distributed

The winner of argmax(logit + noise) has a small v, where float32 is precise; that is why the
noise is taken from log1p(-v) and not from log of a number near 1.
"""

import torch

_MASK = 0xFFFFFFFF
_LANES = (0x9E3779B9, 0x7F4A7C15)
_TOKEN_FACTOR, _FACTOR_1, _FACTOR_2 = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
_LARGEST_V = 1.0 - 2.0**-24

Key = tuple[int, int]


def mix(value: int) -> int:
    """Spread 32 bits over 32 bits; a bijection."""
    value &= _MASK
    value ^= value >> 16
    value = value * _FACTOR_1 & _MASK
    value ^= value >> 13
    value = value * _FACTOR_2 & _MASK
    return value ^ value >> 16


def key_of(seed: int, position: int) -> Key:
    """Return the key of one draw: `position` counts the sequence's output tokens from 0."""
    first, second = (
        mix(half ^ mix(position + lane))
        for half, lane in zip(seed_lanes(seed), _LANES, strict=True)
    )
    return first, second


def seed_lanes(seed: int) -> Key:
    """Return the part of a key that does not depend on the position."""
    first, second = (mix(mix(seed ^ lane) ^ seed >> 32) for lane in _LANES)
    return first, second


def mix_seed(seed: int, seq_id: int) -> int:
    """Return a seed of its own for a sequence that brings none."""
    low, high = key_of(seed, mix(seq_id) ^ mix((seq_id >> 32) + 1))
    return high << 32 | low


def keys_tensor(keys: list[Key], device: torch.device) -> torch.Tensor:
    """Return keys as int32 of shape (S, 2)."""
    return torch.tensor([[_signed(a), _signed(b)] for a, b in keys], dtype=torch.int32).to(device)


def gumbel(token_ids: torch.Tensor, key_0: torch.Tensor, key_1: torch.Tensor) -> torch.Tensor:
    """Return float32 noise for int32 token ids; the keys broadcast against them."""
    hashed = token_ids * _signed(_TOKEN_FACTOR)
    hashed = _xor_shift_(hashed.add_(key_0), 16).mul_(_signed(_FACTOR_1)).add_(key_1)
    hashed = _xor_shift_(hashed, 13).mul_(_signed(_FACTOR_2))
    hashed = _xor_shift_(hashed, 16).bitwise_and_(0x7FFFFFFF)
    v = hashed.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_V)
    return v.neg_().log1p_().neg_().log_().neg_()


def _xor_shift_(value: torch.Tensor, bits: int) -> torch.Tensor:
    # torch shifts int32 arithmetically; the mask drops the copies of the sign.
    shifted = (value >> bits).bitwise_and_((1 << 32 - bits) - 1)
    return value.bitwise_xor_(shifted)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
