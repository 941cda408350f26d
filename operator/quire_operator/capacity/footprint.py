"""How many bytes a model is, and how they divide among GPUs.

A `Footprint` is all that planning knows of a model. It comes from the model's config.json, from the
numbers that somebody wrote into a spec, or, roughly, from a size in a name (`names.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.capacity.errors import CapacityError


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A model's size. Everything is of the whole model; `plan_memory` divides it."""

    name: str
    """What to call it in messages."""
    origin: str
    """Where the numbers are from: "config", "spec" or "name"; the last is an estimate."""
    num_parameters: int
    weight_bytes: int
    """Weights as loaded, quantization counted, embeddings and head included."""
    replicated_bytes: int = 0
    """The part of `weight_bytes` that every GPU of a tensor-parallel group keeps whole: norms."""
    weight_format: str = "bfloat16"
    """Type or quantization of most weights, as people name it."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the widest MLP that one token passes through, all its experts together."""
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    kv_bytes_per_token: int
    """Keys and values of one token in all layers, all heads."""
    window_kv_bytes_per_token: int = 0
    """The part of it in layers that attend to `sliding_window` tokens only."""
    sliding_window: int = 0
    max_position: int
    """Longest sequence that the model is made for."""
    num_experts: int = 0

    @property
    def is_estimate(self) -> bool:
        """Whether the numbers were guessed from a name."""
        return self.origin == "name"


def footprint_of_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    dtype: str = "auto",
    quantization: str = "",
    kv_cache_dtype: str = "auto",
) -> Footprint:
    """Return the size of the model that a config.json describes.

    `dtype` is the engine's flag; auto is the config's own. `quantization` overrides what the
    config's `quantization_config` says, as when weights are quantized while they are loaded.

    Raises:
        CapacityError: a value is missing or unknown; the message names it.
    """
    raise NotImplementedError


def footprint_of_sizes(
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
    max_position: int,
    name: str = "",
    num_heads: int = 0,
    num_kv_heads: int = 0,
) -> Footprint:
    """Return a footprint from numbers that somebody states, as `spec.model.sizing` does.

    Head counts of 0 are unknown: every tensor-parallel size counts as possible.

    Raises:
        CapacityError: a size is not positive.
    """
    if weight_bytes <= 0 or kv_bytes_per_token <= 0:
        raise CapacityError("sizes of weights and of a token's keys and values must be positive")
    raise NotImplementedError
