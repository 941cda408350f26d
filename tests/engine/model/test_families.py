"""Every family against transformers, on tiny random models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quire_engine.errors import ConfigError
from quire_engine.model.decoder import Decoder
from quire_engine.model.families import read_spec
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import WeightPlaces
from quire_engine.model.weight_reading import read_safetensors

# Odd sizes on purpose: 6 heads in 2 groups, 8 dimensions each.
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("Llama", {"head_dim": 16}),
    "llama without groups": ("Llama", {"num_key_value_heads": 6}),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "llama yarn, not rounded": ("Llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "llama yarn, mscale": (
        "Llama",
        {"rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5}},
    ),
    "llama linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "llama dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral sliding": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 biases": ("Qwen3", {"attention_bias": True}),
}
TOKEN_IDS = torch.arange(90) * 37 % 97


def make_model(kind: str, changes: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(**SHAPE | changes)
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough that rope, windows and biases change the logits far above rounding.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save(model: Any, path: Path, **options: Any) -> list[Path]:
    model.save_pretrained(path, **options)
    return sorted(path.glob("*.safetensors"))


def dense_attention(spec: ModelSpec) -> Callable[[int, torch.Tensor], torch.Tensor]:
    def attend(layer: int, heads_THD: torch.Tensor) -> torch.Tensor:
        count = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        q, k, v = (part.transpose(0, 1) for part in torch.split(heads_THD, count, 1))
        groups = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        ages = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        hidden = ages < 0
        window = spec.layers[layer].sliding_window
        if window is not None:
            hidden |= ages >= window
        scores = (q @ k.transpose(1, 2) * spec.head_dim**-0.5).masked_fill(hidden, -torch.inf)
        out: torch.Tensor = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return out

    return attend


def our_logits(config: dict[str, Any], files: list[Path]) -> torch.Tensor:
    spec = read_spec(config)
    with torch.inference_mode():
        places = WeightPlaces(spec, torch.float32)
        read_safetensors(files, places, shows_progress=False)
        weights = places.finish()
        # No longer than the original context: dynamic rope then is what transformers computes.
        decoder = Decoder(spec, weights, max_len=SHAPE["max_position_embeddings"])
        hidden = decoder.forward(TOKEN_IDS, torch.arange(len(TOKEN_IDS)), dense_attention(spec))
        return decoder.logits(hidden)


def their_logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(TOKEN_IDS[None]).logits[0]
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = make_model(*CASES[case])
    files = save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(our_logits(config, files), their_logits(model), rtol=2e-4, atol=2e-4)


def test_sharded_weights_are_read_whole(tmp_path: Path) -> None:
    model = make_model("Llama", {})
    files = save(model, tmp_path, max_shard_size="40KB")
    config = json.loads((tmp_path / "config.json").read_text())

    assert len(files) > 3
    torch.testing.assert_close(our_logits(config, files), their_logits(model), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rope", [LLAMA3, YARN])
def test_the_config_style_of_transformers_4_means_the_same(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    save(make_model("Llama", {"rope_parameters": rope}), tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    old = {name: value for name, value in new.items() if name not in ("rope_parameters", "dtype")}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    scaling["type"] = scaling.pop("rope_type")
    old |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "torch_dtype": "float32"}

    assert read_spec(old) == read_spec(new)


def test_an_unknown_architecture_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"MambaForCausalLM is not supported.*LlamaForCausalLM"):
        read_spec({"architectures": ["MambaForCausalLM"]})


def test_a_config_without_architecture_is_refused_by_its_type() -> None:
    with pytest.raises(ConfigError, match="model_type 'mamba'"):
        read_spec({"model_type": "mamba"})


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match="no 'hidden_size'"):
        read_spec(
            {
                "architectures": ["LlamaForCausalLM"],
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "max_position_embeddings": 8,
            }
        )


def test_an_unknown_rope_is_refused(tmp_path: Path) -> None:
    config = {**SHAPE, "architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "spiral"}}
    with pytest.raises(ConfigError, match="rope type 'spiral' is not supported"):
        read_spec(config)


def test_an_unknown_activation_is_refused() -> None:
    config = {**SHAPE, "architectures": ["LlamaForCausalLM"], "hidden_act": "relu"}
    with pytest.raises(ConfigError, match="hidden_act 'relu'"):
        read_spec(config)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "llama3", "factor": 4.0}, 256),
        ({"rope_type": "linear", "factor": 2.0}, 512),
        (None, 256),
    ],
)
def test_the_context_includes_rope_scaling(scaling: Any, expected: int) -> None:
    config = {**SHAPE, "architectures": ["LlamaForCausalLM"], "rope_scaling": scaling}
    assert read_spec(config).max_position == expected
