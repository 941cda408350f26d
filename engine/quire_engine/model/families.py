"""The model families that Quire knows: a family is a row of a table.

A row says what a family's config means (a few switches of `ModelSpec`) and what its checkpoints
call the weights. GGUF files name tensors by architecture-independent keys, so one map serves all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.spec import (
    ConfigReader,
    LayerSpec,
    ModelSpec,
    max_position,
    read_rope,
)

Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """The parts of a spec in which families differ."""

    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: Windows | None = None
    """Sliding window of each layer; None: no layer has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row: architectures that share a meaning of their config and a naming of weights."""

    architecture: str
    switches: Callable[[ConfigReader], Switches]
    gguf_architecture: str
    gguf_permutes_qk: bool = False
    """llama.cpp reorders the rows of q and k for its own rope; loading must undo it."""


def _llama(config: ConfigReader) -> Switches:
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return Switches(qkv_bias=bias, attention_out_bias=bias, mlp_bias=mlp_bias)


def _mistral(config: ConfigReader) -> Switches:
    window = config.get("sliding_window")
    return Switches(windows=(window,) * config.require("num_hidden_layers"))


def _qwen2(config: ConfigReader) -> Switches:
    return Switches(qkv_bias=True, windows=_qwen_windows(config))


def _qwen3(config: ConfigReader) -> Switches:
    bias = bool(config.get("attention_bias", False))
    return Switches(
        qkv_bias=bias, attention_out_bias=bias, qk_norm=True, windows=_qwen_windows(config)
    )


def _qwen_windows(config: ConfigReader) -> Windows | None:
    window = config.get("sliding_window")
    if not config.get("use_sliding_window", False) or window is None:
        return None
    num_layers = config.require("num_hidden_layers")
    first = config.get("max_window_layers", num_layers)
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family(
            architecture="LlamaForCausalLM",
            switches=_llama,
            gguf_architecture="llama",
            gguf_permutes_qk=True,
        ),
        # llama.cpp knows Mistral as "llama", permutation included.
        Family(
            architecture="MistralForCausalLM",
            switches=_mistral,
            gguf_architecture="llama",
            gguf_permutes_qk=True,
        ),
        Family(architecture="Qwen2ForCausalLM", switches=_qwen2, gguf_architecture="qwen2"),
        Family(architecture="Qwen3ForCausalLM", switches=_qwen3, gguf_architecture="qwen3"),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Find the row of a config's architecture.

    Raises:
        ConfigError: no architecture is named, or none that is known.
    """
    architectures = config.get("architectures") or []
    for architecture in architectures:
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    named = ", ".join(architectures) or f"of model_type {config.get('model_type')!r}"
    raise ConfigError(
        f"the architecture {named} is not supported; supported are {', '.join(sorted(FAMILIES))}"
    )


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Build the spec that a config in the style of Hugging Face describes.

    Raises:
        ConfigError: unsupported architecture, or a value missing or out of range.
    """
    family, reader = family_of(config), ConfigReader(config)
    switches, rope = family.switches(reader), read_rope(reader)
    num_layers = int(reader.require("num_hidden_layers"))
    windows = switches.windows or (None,) * num_layers
    num_heads = int(reader.require("num_attention_heads"))
    return ModelSpec(
        architecture=family.architecture,
        vocab_size=int(reader.require("vocab_size")),
        hidden_size=int(reader.require("hidden_size")),
        intermediate_size=int(reader.require("intermediate_size")),
        num_heads=num_heads,
        num_kv_heads=int(reader.get("num_key_value_heads", num_heads)),
        head_dim=reader.head_dim,
        layers=tuple(LayerSpec(rope=rope, sliding_window=window) for window in windows),
        max_position=max_position(reader, rope),
        norm_eps=float(reader.get("rms_norm_eps", 1e-6)),
        activation=reader.get("hidden_act", "silu"),
        tie_word_embeddings=bool(reader.get("tie_word_embeddings", False)),
        qkv_bias=switches.qkv_bias,
        attention_out_bias=switches.attention_out_bias,
        mlp_bias=switches.mlp_bias,
        qk_norm=switches.qk_norm,
        dtype=reader.get("dtype", reader.get("torch_dtype")),
    )
