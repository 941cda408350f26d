"""The shares of a model's weights are the whole, cut once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.errors import ConfigError
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.fp8 import FP8
from quire_engine.model.quantization import Quantization, assemble_quantized, dequantize
from quire_engine.model.share import WHOLE, Share, check_size, share_of
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import assemble
from quire_engine.model.weights import Cut, parameters
from quire_operator.capacity import check_tensor_parallel, footprint_of_config

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": [family],
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "attention_bias": family == "LlamaForCausalLM",
    }
    return config | changes


specs = st.builds(
    lambda family, heads, groups, width, vocab: read_spec(
        config_of(
            family,
            num_attention_heads=4 * heads * groups,
            num_key_value_heads=4 * heads,
            intermediate_size=4 * width,
            vocab_size=vocab,
        )
    ),
    st.sampled_from(FAMILIES),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(4, 50),
)


def shares(spec: ModelSpec, size: int) -> list[dict[str, torch.Tensor]]:
    return [
        assemble(spec, make_dummy(spec, torch.float32, 0), torch.float32, share=Share(rank, size))
        for rank in range(size)
    ]


@settings(max_examples=20)
@given(specs, st.sampled_from([1, 2, 4]))
def test_shares_put_together_are_the_whole(spec: ModelSpec, size: int) -> None:
    ranks = shares(spec, size)
    tensors = dict(make_dummy(spec, torch.float32, 0))

    for parameter in parameters(spec):
        parts = [weights[parameter.name] for weights in ranks if parameter.name in weights]
        start = 0
        for index, source in enumerate(parameter.sources):
            end = start + parameter.num_rows(index, WHOLE if size == 1 else Share(0, size))
            mine = [part[start:end] for part in parts]
            whole = tensors[source.name]
            match parameter.cut:
                case Cut.ROWS:
                    together = torch.cat(mine)
                    assert torch.equal(together[: len(whole)], whole)
                    assert not together[len(whole) :].any()
                case Cut.COLUMNS:
                    assert torch.equal(torch.cat(mine, 1), whole)
                case Cut.FIRST:
                    assert len(mine) == 1
                    assert torch.equal(mine[0], whole)
                case Cut.NONE:
                    assert all(torch.equal(part, whole) for part in mine)
            start = end


@settings(max_examples=20)
@given(specs, st.sampled_from([1, 2, 4]))
def test_a_share_has_the_shapes_that_its_spec_says(spec: ModelSpec, size: int) -> None:
    local = share_of(spec, Share(size - 1, size))
    expected = {item.name: item.shape for item in parameters(local)}

    for name, weight in shares(spec, size)[-1].items():
        if name == "head.weight":
            assert weight.shape == (-(-spec.vocab_size // size), spec.hidden_size)
        else:
            assert tuple(weight.shape) == expected[name]


@given(st.integers(0, 1000), st.integers(1, 16))
def test_parts_are_consecutive_and_complete(num: int, size: int) -> None:
    parts = [Share(rank, size).part(num) for rank in range(size)]
    assert [index for part in parts for index in range(num)[part]] == list(range(num))


def quantized(spec: ModelSpec, kind: str) -> list[tuple[str, torch.Tensor]]:
    found = []
    for name, tensor in make_dummy(spec, torch.float32, 0):
        if "_proj.weight" not in name:
            found.append((name, tensor))
            continue
        rows, columns = tensor.shape
        if kind == "block":
            scale = torch.rand(rows // 128, columns // 128) + 0.5
            found.append((name.replace("weight", "weight_scale_inv"), scale))
        else:
            scale = torch.rand(1 if kind == "tensor" else rows) + 0.5
            found.append((name.replace("weight", "weight_scale"), scale))
        found.append((name, tensor.to(FP8)))
        found.append((name.replace("weight", "input_scale"), torch.rand(())))
    return found


@pytest.mark.parametrize("kind", ["tensor", "row", "block"])
def test_shares_of_a_quantized_model_have_the_scales_of_their_numbers(kind: str) -> None:
    spec = read_spec(
        config_of(
            "LlamaForCausalLM",
            hidden_size=256,
            intermediate_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=128,
            attention_bias=False,
        )
    )
    tensors, static = quantized(spec, kind), Quantization(has_static_inputs=True)

    def load(share: Share) -> dict[str, torch.Tensor]:
        return assemble_quantized(spec, tensors, static, torch.float32, share=share)

    whole, ranks = load(WHOLE), [load(Share(rank, 2)) for rank in range(2)]
    assert all(
        torch.equal(weights[name], whole[name])
        for weights in ranks
        for name in whole
        if name.endswith("_x_scale")
    )
    dequantize(whole, torch.float32)
    for weights in ranks:
        dequantize(weights, torch.float32)
    plain = dict(tensors)
    plain = {
        source.name: part
        for parameter in parameters(spec)
        for source, part in zip(
            parameter.sources,
            torch.split(whole[parameter.name], [source.num_rows for source in parameter.sources]),
            strict=True,
        )
    }
    for rank, weights in enumerate(ranks):
        expected = assemble(spec, plain.items(), torch.float32, share=Share(rank, 2))
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name]), name


def test_a_share_of_blocks_must_be_whole_blocks() -> None:
    spec = read_spec(
        config_of(
            "LlamaForCausalLM",
            hidden_size=256,
            intermediate_size=128,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=128,
            attention_bias=False,
        )
    )
    dynamic = Quantization(has_static_inputs=False)
    with pytest.raises(ConfigError, match=r"gate_proj.weight is 64 x 256 on each of 2 GPUs; .*128"):
        assemble_quantized(
            spec, quantized(spec, "block"), dynamic, torch.float32, share=Share(1, 2)
        )


CONFIG = config_of("LlamaForCausalLM", intermediate_size=32 * 27)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sizes_that_plan_calls_legal_divide_a_model(size: int) -> None:
    assert not check_tensor_parallel(footprint_of_config(CONFIG), size)
    check_size(read_spec(CONFIG), size)


@pytest.mark.parametrize("size", [3, 5, 6, 8, 9])
def test_other_sizes_are_refused_with_those_that_plan_names(size: int) -> None:
    assert check_tensor_parallel(footprint_of_config(CONFIG), size).endswith("; 1, 2 and 4 do")
    message = (
        f"tensor_parallel_size={size} does not divide 8 attention heads, 4 key/value heads and "
        "an intermediate size of 864; 1, 2 and 4 do"
    )
    with pytest.raises(ConfigError, match=message):
        check_size(read_spec(CONFIG), size)
