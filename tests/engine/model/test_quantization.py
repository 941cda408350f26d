from collections.abc import Iterator
from typing import Any

import pytest
import torch

from quire_engine.errors import ConfigError
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.fp8 import FP8, quantize_by_row
from quire_engine.model.quantization import (
    Quantization,
    assemble_quantized,
    dequantize,
    read_quantization,
)
from quire_engine.model.weight_places import WeightPlaces, assemble

SPEC = read_spec(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
)
DYNAMIC = Quantization(has_static_inputs=False)


def plain() -> dict[str, torch.Tensor]:
    return dict(make_dummy(SPEC, torch.float32, 0))


def quantized(kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in plain().items():
        if "_proj" not in name:
            yield name, tensor
            continue
        base = name.removesuffix(".weight")
        if kind == "block":
            blocks = tensor.view(-1, 128, tensor.shape[1] // 128, 128)
            scale = blocks.abs().amax((1, 3)) / 448
            yield base + ".weight_scale_inv", scale
            wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            yield name, (tensor / wide).to(FP8)
            continue
        scale = tensor.abs().amax() / 448 if kind == "tensor" else tensor.abs().amax(1) / 448
        shape = (1,) if kind == "tensor" else (-1, 1)
        yield name, (tensor / scale.reshape(shape)).to(FP8)
        yield base + ".weight_scale", scale if kind == "tensor" else scale[:, None]
        yield base + ".input_scale", torch.tensor(0.25 if "k_proj" in name else 0.125)


@pytest.mark.parametrize("kind", ["tensor", "row", "block"])
def test_a_quantized_checkpoint_is_close_to_what_it_was(kind: str) -> None:
    weights = assemble_quantized(SPEC, quantized(kind), DYNAMIC, torch.float32)
    assert weights["layers.0.qkv.weight"].dtype == FP8
    shape = (4, 2) if kind == "block" else (512,)
    assert weights["layers.0.qkv.weight_scale"].shape == shape

    dequantize(weights, torch.float32)

    expected = assemble(SPEC, plain().items(), torch.float32)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0.07, atol=1e-4)


def test_inputs_that_are_shared_have_the_widest_range_of_their_users() -> None:
    static = Quantization(has_static_inputs=True)
    weights = assemble_quantized(SPEC, quantized("tensor"), static, torch.float32)

    assert weights["layers.0.qkv.weight_x_scale"].tolist() == [0.25]
    assert weights["layers.0.down.weight_x_scale"].tolist() == [0.125]


def test_any_checkpoint_can_be_quantized_when_it_is_loaded() -> None:
    places = WeightPlaces(SPEC, torch.float32, quantizes=True)
    places.fill(plain().items())
    weights = places.finish()
    numbers, scale = quantize_by_row(
        assemble(SPEC, plain().items(), torch.float32)["layers.0.gate_up.weight"]
    )

    assert torch.equal(
        weights["layers.0.gate_up.weight"].view(torch.uint8), numbers.view(torch.uint8)
    )
    assert torch.equal(weights["layers.0.gate_up.weight_scale"], scale)
    assert weights["head.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "awq"}, "'awq' is not supported; fp8 and compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, r"\[64, 128\] is not supported"),
        ({"quant_method": "fp8", "activation_scheme": "x"}, "'x' is not known"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"0": {"weights": {"type": "int", "num_bits": 4}}},
            },
            "weights of type int and 4 bits",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 config groups"),
    ],
)
def test_formats_that_are_not_supported_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_quantization({"quantization_config": config})


def test_published_formats_are_read() -> None:
    assert read_quantization({}) is None
    fp8 = {"quant_method": "fp8", "activation_scheme": "static"}
    assert read_quantization({"quantization_config": fp8}) == Quantization(has_static_inputs=True)
    kind = {"type": "float", "num_bits": 8}
    group = {"weights": kind, "input_activations": kind | {"dynamic": True}}
    packed = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    assert read_quantization({"quantization_config": packed}) == DYNAMIC


def test_scales_that_are_missing_or_fit_nothing_are_named() -> None:
    tensors = dict(quantized("row"))
    scale = tensors.pop("model.layers.0.self_attn.k_proj.weight_scale")
    with pytest.raises(ConfigError, match=r"lacks model.layers.0.self_attn.k_proj.weight_scale"):
        assemble_quantized(SPEC, tensors.items(), DYNAMIC, torch.float32)

    tensors["model.layers.0.self_attn.k_proj.weight_scale"] = scale[:-1]
    with pytest.raises(ConfigError, match=r"has shape \(127, 1\); 1 number, 128"):
        assemble_quantized(SPEC, tensors.items(), DYNAMIC, torch.float32)


def test_parts_of_one_weight_are_quantized_together_or_not_at_all() -> None:
    tensors = dict(quantized("row"))
    name = "model.layers.0.self_attn.v_proj.weight"
    tensors[name] = plain()[name]

    with pytest.raises(ConfigError, match=r"v_proj.weight is torch.float32, other parts"):
        assemble_quantized(SPEC, tensors.items(), DYNAMIC, torch.float32)
