"""Footprints against what really allocates: the engine's own code, and transformers' models."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from quire_engine.config import ModelConfig
from quire_engine.model.families import read_spec
from quire_engine.model.source import resolve
from quire_engine.model.weights import num_parameters
from quire_engine.runner.memory import block_bytes
from quire_operator.capacity import CapacityError, footprint_of_config, footprint_of_sizes

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
MISTRAL_7B = LLAMA_8B | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
}
BIASED = LLAMA_8B | {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True}
REAL = [LLAMA_8B, LLAMA_70B, LLAMA_405B, QWEN2_7B, QWEN3_06B, MISTRAL_7B, BIASED]

TINY_MOE: list[dict[str, Any]] = [
    {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "intermediate_size": 160,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 500,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "tie_word_embeddings": True,
    },
    {
        "model_type": "qwen2_moe",
        "hidden_size": 64,
        "intermediate_size": 160,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 500,
        "num_experts": 6,
    },
    {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 500,
    },
]


@pytest.mark.parametrize("config", REAL, ids=lambda config: str(config["hidden_size"]))
def test_the_weights_are_those_that_the_engine_allocates(config: dict[str, Any]) -> None:
    footprint = footprint_of_config(config)

    assert footprint.num_parameters == num_parameters(read_spec(config))
    assert footprint.weight_bytes == 2 * num_parameters(read_spec(config))


@pytest.mark.parametrize("config", REAL, ids=lambda config: str(config["hidden_size"]))
def test_a_token_takes_what_the_engine_s_blocks_give_it(config: dict[str, Any]) -> None:
    footprint = footprint_of_config(config)

    of_block = block_bytes(read_spec(config), 16, torch.bfloat16)
    assert footprint.kv_bytes_per_token * 16 == of_block


def test_the_demo_model_is_as_large_as_the_engine_makes_it() -> None:
    source = resolve(ModelConfig())

    footprint = footprint_of_config(source.config)

    assert footprint.num_parameters == num_parameters(read_spec(source.config)) == 134515008
    assert footprint.weight_bytes == 2 * 134515008


@pytest.mark.parametrize("config", TINY_MOE, ids=lambda config: str(config["model_type"]))
def test_other_families_are_as_large_as_transformers_makes_them(config: dict[str, Any]) -> None:
    theirs = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)  # type: ignore[no-untyped-call]

    footprint = footprint_of_config(theirs.to_dict() | {"model_type": config["model_type"]})

    assert footprint.num_parameters == model.num_parameters()


@settings(max_examples=60)
@given(
    num_kv_heads=st.integers(1, 8),
    group=st.integers(1, 8),
    head_dim=st.sampled_from([64, 80, 96, 128]),
    num_layers=st.integers(1, 12),
    width=st.integers(16, 4096),
    vocab=st.integers(16, 200_000),
    tied=st.booleans(),
    family=st.sampled_from([("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2")]),
)
def test_any_dense_model_is_counted_as_the_engine_counts_it(
    num_kv_heads: int,
    group: int,
    head_dim: int,
    num_layers: int,
    width: int,
    vocab: int,
    tied: bool,
    family: tuple[str, str],
) -> None:
    architecture, kind = family
    config = LLAMA_8B | {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": num_kv_heads * group * 64,
        "intermediate_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_kv_heads * group,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }

    assert footprint_of_config(config).num_parameters == num_parameters(read_spec(config))


@pytest.mark.parametrize(
    ("quantization_config", "gigabytes"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.7),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 9.1),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 9.1),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            5.7,
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 5.8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 6.0),
    ],
    ids=lambda value: str(value.get("quant_method")) if isinstance(value, dict) else "",
)
def test_quantization_shrinks_the_layers_and_leaves_embeddings(
    quantization_config: dict[str, Any], gigabytes: float
) -> None:
    footprint = footprint_of_config(LLAMA_8B | {"quantization_config": quantization_config})

    assert footprint.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.06)
    assert footprint.embedding_bytes + footprint.head_bytes == 2 * 2 * 128256 * 4096


def test_a_quantization_that_is_asked_for_replaces_that_of_the_config() -> None:
    plain = footprint_of_config(LLAMA_8B)
    fp8 = footprint_of_config(LLAMA_8B, quantization="fp8")

    assert fp8.weight_format == "fp8"
    assert fp8.weight_bytes < 0.6 * plain.weight_bytes


def test_an_fp8_cache_takes_half() -> None:
    plain, fp8 = (
        footprint_of_config(LLAMA_8B, kv_cache_dtype=kind).kv_bytes_per_token
        for kind in ("auto", "fp8")
    )

    assert fp8 * 2 == plain == 131072


def test_a_multimodal_model_is_planned_by_its_text_part() -> None:
    nested = {"model_type": "mistral3", "text_config": MISTRAL_7B, "torch_dtype": "bfloat16"}

    assert footprint_of_config(nested) == footprint_of_config(MISTRAL_7B)


def test_float32_checkpoints_run_in_bfloat16() -> None:
    assert footprint_of_config(LLAMA_8B | {"torch_dtype": "float32"}).activation_dtype_bytes == 2
    assert footprint_of_config(LLAMA_8B, dtype="float32").activation_dtype_bytes == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "the model's config has no 'hidden_size'"),
        ({"vocab_size": -3}, "vocab_size=-3 is no positive number"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers='many' is no positive number"),
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method 'hqq' is not known"),
    ],
)
def test_a_config_that_cannot_be_planned_says_what_is_wrong(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapacityError, match=message):
        footprint_of_config(LLAMA_8B | change)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of bfloat16, .*; not 'int3'"),
        ({"quantization": "q9"}, "quantization must be one of awq, .*; not 'q9'"),
        ({"kv_cache_dtype": "int1"}, "kv_cache_dtype must be one of auto, .*; not 'int1'"),
    ],
)
def test_an_unknown_format_names_the_known_ones(flags: dict[str, str], message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        footprint_of_config(LLAMA_8B, **flags)


def test_stated_sizes_are_taken_as_they_are() -> None:
    footprint = footprint_of_sizes(
        weight_bytes=16 << 30, kv_bytes_per_token=131072, max_position=8192
    )

    assert (footprint.weight_bytes, footprint.kv_bytes_per_token) == (16 << 30, 131072)
    with pytest.raises(CapacityError, match="the size of the weights must be more than 0, not -1"):
        footprint_of_sizes(weight_bytes=-1, kv_bytes_per_token=1, max_position=1)
