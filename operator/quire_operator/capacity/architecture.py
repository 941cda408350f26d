"""The numbers in a config.json that decide how large a model is.

Counts are of numbers, not of bytes. The spellings are those of Hugging Face's families: dense ones
and mixtures of experts, alone or as the text part of a multimodal model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.capacity.errors import CapacityError

QKV_BIAS_TYPES = ("qwen2", "qwen2_moe")
"""Families with a bias on queries, keys and values that their configs do not mention."""
QK_NORM_TYPES = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")
"""Families that norm every query and key head."""
TIED_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text")
"""Families whose head is the embedding unless their configs deny it."""
NUM_NORMS: Mapping[str, int] = {"gemma2": 4, "gemma3": 4, "gemma3_text": 4}
"""Norms of a layer, where they are not two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder's dimensions, and how many numbers each part of it has."""

    num_layers: int
    hidden_size: int
    mlp_width: int
    """Width of the MLP that one token passes through, all its experts together."""
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    num_linear: int
    """In linear layers, all experts included: what quantization shrinks."""
    num_replicated: int
    """In norms, biases and the gates that choose experts."""
    num_embedding: int
    num_head: int
    """0 where the head is the embedding."""

    @property
    def num_parameters(self) -> int:
        return self.num_linear + self.num_replicated + self.num_embedding + self.num_head

    @property
    def attention_width(self) -> int:
        """Queries, keys, values and attention's output of one token in one layer."""
        return 2 * (self.num_heads + self.num_kv_heads) * self.head_dim

    @property
    def num_kv_per_token(self) -> int:
        """Numbers that the cache keeps of a token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class _Reader:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def find(self, *names: str, default: Any = None) -> Any:
        """Return the first value that is there; null counts as absent, as in published configs."""
        return next((self._values[n] for n in names if self._values.get(n) is not None), default)

    def require(self, *names: str) -> int:
        value = self.find(*names)
        if not isinstance(value, int) or value < 1:
            what = f"{names[0]}={value!r} is no positive number" if value else f"no {names[0]!r}"
            raise CapacityError(f"the model's config has {what}")
        return value

    @property
    def model_type(self) -> str:
        return str(self.find("model_type", default=""))


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the dimensions of a config.json.

    Raises:
        CapacityError: a value is missing, or the attention is of a kind that is not planned.
    """
    reader = _Reader({**config, **(config.get("text_config") or {})})
    if reader.find("kv_lora_rank"):
        raise CapacityError(
            "models with multi-head latent attention (kv_lora_rank) are not planned; state "
            "weights and bytes per token instead"
        )
    hidden, num_heads = reader.require("hidden_size"), reader.require("num_attention_heads")
    num_layers, vocab = reader.require("num_hidden_layers"), reader.require("vocab_size")
    num_kv_heads = reader.find("num_key_value_heads", default=num_heads)
    head_dim = reader.find("head_dim", default=hidden // num_heads)
    experts = _read_experts(reader, num_layers)
    attention = hidden * head_dim * (2 * num_heads + 2 * num_kv_heads)
    is_tied = reader.find("tie_word_embeddings", default=reader.model_type in TIED_TYPES)
    return Architecture(
        num_layers=num_layers,
        hidden_size=hidden,
        mlp_width=experts.width_of_token,
        vocab_size=vocab,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=reader.require("max_position_embeddings"),
        num_linear=num_layers * attention + 3 * hidden * experts.width_in_all,
        num_replicated=_num_small(reader, num_layers, experts, num_heads, num_kv_heads, head_dim),
        num_embedding=vocab * hidden,
        num_head=0 if is_tied else vocab * hidden,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    width_of_token: int
    """Widest MLP that a token passes through in one layer."""
    width_in_all: int
    """Widths of all MLPs of all layers together."""
    num_gates: int
    """Outputs of all gates together."""


def _read_experts(reader: _Reader, num_layers: int) -> _Experts:
    num_experts = reader.find("num_local_experts", "num_experts", "n_routed_experts", default=0)
    if not num_experts:
        dense = reader.require("intermediate_size")
        return _Experts(width_of_token=dense, width_in_all=num_layers * dense, num_gates=0)
    expert = reader.require("moe_intermediate_size", "intermediate_size")
    shared = reader.find("shared_expert_intermediate_size", default=0)
    shared += expert * reader.find("n_shared_experts", default=0)
    num_dense = _num_dense_layers(reader, num_layers)
    num_sparse = num_layers - num_dense
    dense = reader.find("intermediate_size", default=expert)
    chosen = reader.find("num_experts_per_tok", default=1) * expert + shared
    return _Experts(
        width_of_token=max(chosen, dense if num_dense else 0),
        width_in_all=num_sparse * (num_experts * expert + shared) + num_dense * dense,
        num_gates=num_sparse * (num_experts + (1 if shared else 0)),
    )


def _num_dense_layers(reader: _Reader, num_layers: int) -> int:
    first_dense = reader.find("first_k_dense_replace", default=0)
    step = reader.find("decoder_sparse_step", default=1)
    listed = set(reader.find("mlp_only_layers", default=()))
    return sum(
        1
        for layer in range(num_layers)
        if layer < first_dense or layer in listed or (layer + 1) % step
    )


def _num_small(
    reader: _Reader,
    num_layers: int,
    experts: _Experts,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> int:
    hidden, kind = reader.require("hidden_size"), reader.model_type
    per_layer = NUM_NORMS.get(kind, 2) * hidden
    has_bias = reader.find("attention_bias", default=False)
    if has_bias or kind in QKV_BIAS_TYPES:
        per_layer += (num_heads + 2 * num_kv_heads) * head_dim
    if has_bias:
        per_layer += hidden
    if kind in QK_NORM_TYPES:
        per_layer += 2 * head_dim
    if reader.find("mlp_bias", default=False):
        per_layer += 2 * experts.width_of_token + hidden
    return hidden + num_layers * per_layer + experts.num_gates * hidden
