import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import write_gguf
from quire_engine.errors import ConfigError
from quire_engine.model.demo import demo_model
from quire_engine.model.families import read_spec
from quire_engine.model.gguf_config import config_of
from quire_engine.model.gguf_metadata import read_metadata

EMBEDDING = np.zeros((8, 32))


def config(tmp_path: Path, architecture: str = "llama", **parts: Any) -> dict[str, Any]:
    return config_of(read_metadata(write_gguf(tmp_path / "m.gguf", architecture, **parts)))


def llama3_factors(head_dim: int, theta: float, factor: float) -> list[float]:
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    found = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def test_the_demo_model_s_config() -> None:
    found = config_of(read_metadata(demo_model()))

    assert found["architectures"] == ["LlamaForCausalLM"]
    assert (found["vocab_size"], found["head_dim"], found["num_key_value_heads"]) == (49152, 64, 3)
    assert (found["bos_token_id"], found["eos_token_id"]) == (1, 2)
    assert found["tie_word_embeddings"]
    assert "rope_scaling" not in found
    assert read_spec(found).num_layers == 30


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", "LlamaForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
    ],
)
def test_architectures_that_the_decoder_knows(
    tmp_path: Path, architecture: str, expected: str
) -> None:
    found = config(tmp_path, architecture)

    assert found["architectures"] == [expected]
    assert read_spec(found).vocab_size == 8


def test_a_sliding_window_makes_llama_mistral(tmp_path: Path) -> None:
    found = config(tmp_path, values={"attention.sliding_window": 64})

    assert (found["architectures"], found["sliding_window"]) == (["MistralForCausalLM"], 64)


def test_an_output_matrix_of_its_own_is_not_tied(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": EMBEDDING, "output.weight": EMBEDDING}

    assert not config(tmp_path, tensors=tensors)["tie_word_embeddings"]
    assert config(tmp_path)["tie_word_embeddings"]


def test_head_dim_may_differ_from_the_hidden_size(tmp_path: Path) -> None:
    assert config(tmp_path)["head_dim"] == 8
    assert config(tmp_path, values={"attention.key_length": 16})["head_dim"] == 16


def test_yarn_is_read_from_metadata(tmp_path: Path) -> None:
    values = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }

    scaling = config(tmp_path, "qwen2", values=values)["rope_scaling"]

    assert scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_factors(tmp_path: Path, factor: float) -> None:
    tensors = {
        "token_embd.weight": EMBEDDING,
        "rope_freqs.weight": llama3_factors(64, 500000.0, factor),
    }
    values = {"rope.freq_base": 500000.0, "attention.key_length": 64}

    scaling = config(tmp_path, values=values, tensors=tensors)["rope_scaling"]

    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", factor)
    assert scaling["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("factors", [[1.0, 2.0, 3.0, 4.0], [1.0]])
def test_other_frequency_factors_are_refused(tmp_path: Path, factors: list[float]) -> None:
    tensors = {"token_embd.weight": EMBEDDING, "rope_freqs.weight": factors}

    with pytest.raises(ConfigError, match="not of Llama 3's kind"):
        config(tmp_path, tensors=tensors)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("gemma3", {}, "architecture gemma3; supported in GGUF files are llama, qwen2, qwen3"),
        ("llama", {"expert_count": 8}, "llama with experts"),
        ("llama", {"block_count": None}, r"no metadata llama\.block_count"),
        ("llama", {"rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    tmp_path: Path, architecture: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, architecture, values=values)
