"""Rotary position embedding: frequencies from a `RopeSpec`, tables, and the rotation itself.

Legend: T tokens, P positions, H heads, D head dim, R rotated dims.
"""

import math

import torch

from quire_engine.model.spec import RopeSpec


def inverse_frequencies(spec: RopeSpec, max_len: int) -> torch.Tensor:
    """Return the R/2 angular speeds of a rope, float32, as transformers computes them.

    `max_len` is the longest sequence to be served: dynamic scaling depends on it, and is fixed
    for it, so that keys cached early fit queries that come late.
    """
    match spec.kind:
        case "linear":
            return _plain(spec.theta, spec.rotary_dim) / spec.factor
        case "dynamic":
            return _dynamic(spec, max_len)
        case "llama3":
            return _llama3(spec)
        case "yarn":
            return _yarn(spec)
    return _plain(spec.theta, spec.rotary_dim)


def _plain(theta: float, rotary_dim: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _dynamic(spec: RopeSpec, max_len: int) -> torch.Tensor:
    stretch = max(max_len, spec.original_max_position) / spec.original_max_position
    growth = spec.factor * stretch - (spec.factor - 1)
    exponent = spec.rotary_dim / (spec.rotary_dim - 2)
    return _plain(spec.theta * growth**exponent, spec.rotary_dim)


def _llama3(spec: RopeSpec) -> torch.Tensor:
    """Slow down long wavelengths by `factor`, keep short ones, and blend between."""
    speeds = _plain(spec.theta, spec.rotary_dim)
    turns = spec.original_max_position * speeds / (2 * math.pi)
    blend = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * speeds / spec.factor + blend * speeds


def _yarn(spec: RopeSpec) -> torch.Tensor:
    """Interpolate dimensions that turn less than `beta_slow` times in the original context.

    Those that turn more than `beta_fast` times stay; in between a linear ramp.
    """
    speeds = _plain(spec.theta, spec.rotary_dim)
    low, high = _yarn_dim(spec, spec.beta_fast), _yarn_dim(spec, spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    span = high - low or 0.001
    ramp = (torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / span
    keep = 1 - ramp.clamp(0, 1)
    return speeds / spec.factor * (1 - keep) + speeds * keep


def _yarn_dim(spec: RopeSpec, num_turns: float) -> float:
    """Return the (fractional) dimension that turns `num_turns` times in the original context."""
    wavelength = spec.original_max_position / (num_turns * 2 * math.pi)
    return spec.rotary_dim * math.log(wavelength) / (2 * math.log(spec.theta))


class RopeTable:
    """Cosines and sines of every position, ready to be multiplied with whole heads."""

    def __init__(
        self, spec: RopeSpec, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._half = spec.rotary_dim // 2
        speeds = inverse_frequencies(spec, max_len)
        angles_PR = torch.outer(torch.arange(max_len, dtype=torch.float32), speeds)
        cos, sin = angles_PR.cos() * spec.attention_factor, angles_PR.sin() * spec.attention_factor
        self.cos_PR = torch.cat((cos, cos), -1).to(device, dtype)
        # The first half takes minus its partner, the second plus: the sign lives in the table.
        self.sin_PR = torch.cat((-sin, sin), -1).to(device, dtype)

    def at(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of some positions, (T, 1, R) each."""
        return self.cos_PR[positions_T].unsqueeze(1), self.sin_PR[positions_T].unsqueeze(1)

    def rotate_(self, heads_THD: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Rotate heads in place by what `at` returned for their tokens."""
        cos, sin = turn
        part = heads_THD[..., : 2 * self._half]
        partner = part.roll(self._half, -1)
        part.mul_(cos).addcmul_(partner, sin)
