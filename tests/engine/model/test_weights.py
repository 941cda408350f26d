from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quire_engine.errors import ConfigError
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.gguf_weights import hugging_face_name, read_gguf
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import assemble
from quire_engine.model.weights import num_parameters

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def spec_of(**changes: Any) -> ModelSpec:
    return read_spec(CONFIG | changes)


def dummy(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(make_dummy(spec, torch.float32, seed))


def test_q_k_v_and_gate_up_are_stacked() -> None:
    spec = spec_of()
    tensors = dummy(spec)
    weights = assemble(spec, tensors.items(), torch.float32)

    parts = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(weights["layers.1.qkv.weight"], torch.cat(parts))
    parts = [tensors[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(weights["layers.0.gate_up.weight"], torch.cat(parts))
    assert sum(weight.numel() for weight in weights.values()) == num_parameters(spec)


def test_missing_tensors_are_named() -> None:
    spec = spec_of()
    tensors = dummy(spec)
    del tensors["model.layers.1.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    with pytest.raises(ConfigError, match=r"lacks 2 tensors: .*model.norm.*k_proj") as caught:
        assemble(spec, tensors.items(), torch.float32)
    assert "q_proj" not in str(caught.value)


def test_unknown_tensors_are_named_and_a_long_list_is_cut() -> None:
    spec = spec_of()
    tensors = dummy(spec) | {f"extra.{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(ConfigError, match=r"has unknown 20 tensors: extra.0, .* and 12 more"):
        assemble(spec, tensors.items(), torch.float32)


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    spec = spec_of()
    tensors = dummy(spec) | {"model.norm.weight": torch.ones(31)}
    with pytest.raises(ConfigError, match=r"model.norm.weight has shape \(31,\); .* \(32,\)"):
        assemble(spec, tensors.items(), torch.float32)


def test_a_tied_head_and_rope_tables_in_the_file_are_passed_over() -> None:
    spec = spec_of(tie_word_embeddings=True)
    tensors = dummy(spec) | {
        "lm_head.weight": torch.zeros(40, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    assert "head.weight" not in assemble(spec, tensors.items(), torch.float32)


def test_weights_are_converted() -> None:
    weights = assemble(spec_of(), dummy(spec_of()).items(), torch.bfloat16)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_dummy_weights_depend_on_the_seed_alone() -> None:
    one, same, other = dummy(spec_of(), 1), dummy(spec_of(), 1), dummy(spec_of(), 2)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one["model.norm.weight"].mean().item() == pytest.approx(1.0, abs=0.02)


def gguf_name(name: str) -> str:
    for theirs, ours in GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def permute(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter does to q and k of the Llama family."""
    shape = (num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, spec: ModelSpec, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in dummy(spec).items():
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permute(values, spec.num_heads if "q_proj" in name else spec.num_kv_heads)
        of_kind = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(values), of_kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=of_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("F32", 0.0), ("F16", 1e-5), ("BF16", 1e-4), ("Q8_0", 2e-4)]
)
def test_gguf_gives_the_tensors_it_was_made_from(
    kind: str, tolerance: float, tmp_path: Path
) -> None:
    spec = spec_of()
    path = tmp_path / "model.gguf"
    write_gguf(path, spec, gguf.GGMLQuantizationType[kind])

    found = dict(read_gguf(path, spec, shows_progress=False))

    expected = dummy(spec)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=tolerance)


def test_an_unknown_gguf_tensor_keeps_its_name() -> None:
    assert hugging_face_name("blk.3.ssm_conv1d.weight") == "blk.3.ssm_conv1d.weight"
    assert hugging_face_name("blk.3.attn_q.bias") == "model.layers.3.self_attn.q_proj.bias"


def test_an_unreadable_gguf_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no header, but long enough to be looked at")
    with pytest.raises(ConfigError, match=r"cannot read the weights .*model\.gguf"):
        list(read_gguf(path, spec_of(), shows_progress=False))
