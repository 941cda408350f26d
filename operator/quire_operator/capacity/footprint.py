"""How many bytes a model is, and how they divide among GPUs.

A `Footprint` is all that planning knows of a model. It comes from the model's config.json, from the
numbers that somebody wrote into a spec, or, roughly, from a size in a name (`names.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.capacity.architecture import Architecture, read_architecture
from quire_operator.capacity.errors import CapacityError
from quire_operator.capacity.quantization import (
    DTYPE_BYTES,
    WeightFormat,
    dtype_bytes,
    kv_dtype_bytes,
    named,
    of_config,
)

DEFAULT_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A model's size. Everything is of the whole model; `plan_memory` divides it."""

    name: str
    """What to call it in messages."""
    origin: str
    """Where the numbers are from: "config", "spec" or "name"; the last is an estimate."""
    num_parameters: int
    """0: unknown."""
    layer_bytes: int
    """Weights of all layers, quantization counted."""
    embedding_bytes: int = 0
    head_bytes: int = 0
    """0 where the head is the embedding."""
    replicated_bytes: int = 0
    """The part of `layer_bytes` that every GPU of a tensor-parallel group keeps whole: norms."""
    weight_format: str = DEFAULT_DTYPE
    """Type or quantization of most weights, as people name it."""
    activation_dtype_bytes: int = 2
    num_layers: int = 1
    hidden_size: int = 0
    """0: the architecture is unknown."""
    attention_width: int = 0
    """Queries, keys, values and attention's output of one token in one layer."""
    head_dim: int = 0
    mlp_width: int = 0
    """Width of the MLP that one token passes through, all its experts together."""
    vocab_size: int = 0
    num_heads: int = 0
    """0: unknown."""
    num_kv_heads: int = 0
    kv_bytes_per_token: int
    """Keys and values of one token in all layers, all heads."""
    max_position: int
    """Longest sequence that the model is made for."""

    @property
    def weight_bytes(self) -> int:
        """Everything that is loaded."""
        return self.layer_bytes + self.embedding_bytes + self.head_bytes

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
    resolved = config_dtype(config) if dtype == "auto" else dtype
    return footprint_of_architecture(
        read_architecture(config),
        name=name,
        origin="config",
        dtype=resolved,
        weights=named(quantization) if quantization else of_config(config, resolved),
        kv_cache_dtype=kv_cache_dtype,
    )


def config_dtype(config: Mapping[str, Any]) -> str:
    """Return the type that the engine computes in for a config: float32 models run in bfloat16."""
    text = config.get("text_config") or {}
    stated = next(
        (part[key] for part in (config, text) for key in ("dtype", "torch_dtype") if part.get(key)),
        DEFAULT_DTYPE,
    )
    stated = str(stated).removeprefix("torch.")
    return stated if DTYPE_BYTES.get(stated) == 2 else DEFAULT_DTYPE


def footprint_of_architecture(
    architecture: Architecture,
    *,
    name: str,
    origin: str,
    dtype: str,
    weights: WeightFormat,
    kv_cache_dtype: str,
) -> Footprint:
    """Return the bytes of an architecture whose linear layers are stored as `weights`.

    Raises:
        CapacityError: a type is unknown.
    """
    size = dtype_bytes(dtype)
    kv_size = kv_dtype_bytes(kv_cache_dtype, dtype)
    replicated = architecture.num_replicated * size
    return Footprint(
        name=name,
        origin=origin,
        num_parameters=architecture.num_parameters,
        layer_bytes=int(architecture.num_linear * weights.bytes_per_weight) + replicated,
        embedding_bytes=architecture.num_embedding * size,
        head_bytes=architecture.num_head * size,
        replicated_bytes=replicated,
        weight_format=weights.name,
        activation_dtype_bytes=size,
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        attention_width=architecture.attention_width,
        head_dim=architecture.head_dim,
        mlp_width=architecture.mlp_width,
        vocab_size=architecture.vocab_size,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        kv_bytes_per_token=architecture.num_kv_per_token * kv_size,
        max_position=architecture.max_position,
    )


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
    for what, value in (
        ("the size of the weights", weight_bytes),
        ("the bytes of a token's keys and values", kv_bytes_per_token),
        ("the longest sequence", max_position),
    ):
        if value <= 0:
            raise CapacityError(f"{what} must be more than 0, not {value}")
    return Footprint(
        name=name,
        origin="spec",
        num_parameters=0,
        layer_bytes=weight_bytes,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        kv_bytes_per_token=kv_bytes_per_token,
        max_position=max_position,
    )
