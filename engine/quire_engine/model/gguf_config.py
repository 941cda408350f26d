"""The config of a GGUF file, in the style of a Hugging Face config.json."""

import math
from collections.abc import Mapping
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import GgufMetadata

_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
_REQUIRED = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}
# Llama 3.1 and later: what all published models use.
_LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config_of(metadata: GgufMetadata) -> dict[str, Any]:
    """Return what the config.json of the same model would say.

    Raises:
        ConfigError: an architecture that is not supported, or a value missing.
    """
    architecture, model_type = _architecture(metadata)
    num_heads = _required(metadata, "attention.head_count")
    hidden_size = _required(metadata, "embedding_length")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "num_key_value_heads": metadata.get("attention.head_count_kv", num_heads),
        "head_dim": metadata.get("attention.key_length", hidden_size // num_heads),
        "rope_theta": metadata.get("rope.freq_base", 10000.0),
        "vocab_size": _vocab_size(metadata),
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
        "attention_bias": "blk.0.attn_output.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in metadata.tensors,
    }
    config |= {name: _required(metadata, key) for name, key in _REQUIRED.items()}
    config |= {
        name: metadata.values[f"tokenizer.ggml.{key}"]
        for name, key in _TOKEN_IDS.items()
        if f"tokenizer.ggml.{key}" in metadata.values
    }
    if scaling := _rope_scaling(metadata, config):
        config["rope_scaling"] = scaling
    if window := metadata.get("attention.sliding_window"):
        config["sliding_window"] = window
    return config


def _architecture(metadata: GgufMetadata) -> tuple[str, str]:
    name = metadata.architecture
    if name not in _ARCHITECTURES or metadata.get("expert_count", 0):
        kind = f"{name} with experts" if name in _ARCHITECTURES else name or "unnamed"
        raise ConfigError(
            f"{metadata.path.name} has the architecture {kind}; supported in GGUF files are "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    # llama.cpp has no name for Mistral; only its sliding window tells it from Llama.
    if name == "llama" and metadata.get("attention.sliding_window"):
        return "MistralForCausalLM", "mistral"
    return _ARCHITECTURES[name]


def _required(metadata: GgufMetadata, key: str) -> Any:
    value = metadata.get(key)
    if value is None:
        raise ConfigError(f"{metadata.path.name} has no metadata {metadata.architecture}.{key}")
    return value


def _vocab_size(metadata: GgufMetadata) -> int:
    embedding = metadata.tensors.get("token_embd.weight")
    if embedding is not None:
        return embedding.shape[-1]
    return int(metadata.get("vocab_size", len(metadata.values.get("tokenizer.ggml.tokens", ()))))


def _rope_scaling(metadata: GgufMetadata, config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"{metadata.path.name}: rope scaling {kind!r} is not supported")
    if kind != "none":
        factor = metadata.get("rope.scaling.factor", 1.0)
        original = metadata.get("rope.scaling.original_context_length")
        scaling = {"rope_type": kind, "factor": factor}
        return scaling | ({"original_max_position_embeddings": original} if original else {})
    factors = metadata.read_floats("rope_freqs.weight")
    return _llama3_scaling(metadata, factors, config) if factors else None


def _llama3_scaling(
    metadata: GgufMetadata, factors: tuple[float, ...], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Recognise the frequency factors that llama.cpp stores in place of Llama 3's parameters."""
    scaling = {"rope_type": "llama3", "factor": max(factors), **_LLAMA3_ROPE}
    expected = _llama3_factors(config["head_dim"], config["rope_theta"], scaling)
    if len(factors) != len(expected) or any(
        not math.isclose(found, want, rel_tol=1e-3)
        for found, want in zip(factors, expected, strict=True)
    ):
        raise ConfigError(
            f"{metadata.path.name}: the tensor rope_freqs.weight is not of Llama 3's kind; "
            "other frequency factors are not supported"
        )
    return scaling


def _llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    """Return by what llama3 scaling divides each frequency."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]

    def of(wavelength: float) -> float:
        turns = original / wavelength
        if turns > high:
            return 1.0
        if turns < low:
            return float(factor)
        smooth = (turns - low) / (high - low)
        return float(1.0 / ((1.0 - smooth) / factor + smooth))

    return [of(2.0 * math.pi * theta ** (2 * i / head_dim)) for i in range(head_dim // 2)]
