"""What a decoder looks like, as data.

`ModelSpec` describes every decoder that Quire runs; `decoder.py` executes it. A family that needs
something new adds a field here and one branch there, never a forward pass of its own. The values
come from a config in the style of Hugging Face, with the spellings of transformers 4 and 5.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_engine.errors import ConfigError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
ACTIVATIONS = ("silu",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions become rotations of queries and keys."""

    rotary_dim: int
    """Leading dimensions of a head that are rotated, first half against second half."""
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    """Context the model was trained for before its range was stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Scale of cosine and sine; yarn sharpens attention with it."""
    truncate: bool = True
    """yarn: round the corrected range to whole dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """What may differ from one layer to the next."""

    rope: RopeSpec
    sliding_window: int | None = None
    """Newest tokens that a token attends to, itself included; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. Linear weights are (out, in), as checkpoints store them."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    max_position: int
    """Longest sequence that the model is meant for, rope scaling included."""
    norm_eps: float
    activation: str = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm of each query and key head, before rope."""
    dtype: str | None = None
    """Type that the checkpoint was saved in, as its config says."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_heads} must be a multiple of "
                f"num_key_value_heads={self.num_kv_heads}"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act {self.activation!r} is not supported; {', '.join(ACTIVATIONS)} is"
            )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


class ConfigReader:
    """Reads a model's config and names what is missing."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; null counts as absent, as in published configs."""
        value = self.values.get(name)
        return default if value is None else value

    def require(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            raise ConfigError(f"the model's config has no {name!r}")
        return value

    @property
    def head_dim(self) -> int:
        default = self.require("hidden_size") // self.require("num_attention_heads")
        return int(self.get("head_dim", default))


def read_rope(config: ConfigReader) -> RopeSpec:
    """Read the rope of a config, from `rope_parameters` or `rope_theta` and `rope_scaling`."""
    scaling = ConfigReader(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ConfigError(f"rope type {kind!r} is not supported; {', '.join(ROPE_KINDS)} are")
    partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    original = config.get(
        "original_max_position_embeddings",
        scaling.get("original_max_position_embeddings", config.require("max_position_embeddings")),
    )
    factor = scaling.get("factor")
    if factor is None:
        factor = config.require("max_position_embeddings") / original if kind == "yarn" else 1.0
    return RopeSpec(
        rotary_dim=int(config.head_dim * partial),
        theta=float(scaling.get("rope_theta", config.get("rope_theta", 10000.0))),
        kind=kind,
        factor=float(factor),
        original_max_position=int(original),
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        beta_fast=float(scaling.get("beta_fast") or 32),
        beta_slow=float(scaling.get("beta_slow") or 1),
        attention_factor=_attention_factor(scaling, kind, float(factor)),
        truncate=bool(scaling.get("truncate", True)),
    )


def _attention_factor(scaling: ConfigReader, kind: str, factor: float) -> float:
    from_config = scaling.get("attention_factor")
    if kind != "yarn" or from_config is not None:
        return float(from_config or 1.0)
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def max_position(config: ConfigReader, rope: RopeSpec) -> int:
    """Return the longest sequence that a model is meant for.

    `max_position_embeddings` holds the stretched range for llama3. The configs of yarn disagree,
    so what it stretches decides; linear and dynamic state the range before stretching.
    """
    stated = int(config.require("max_position_embeddings"))
    if rope.kind == "yarn":
        return max(stated, int(rope.original_max_position * rope.factor))
    if rope.kind in ("linear", "dynamic"):
        return int(stated * rope.factor)
    return stated
