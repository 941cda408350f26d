from dataclasses import dataclass

import pytest
import torch

from quire_engine.core.messages import CoreStats
from quire_engine.model.families import read_spec
from quire_engine.model.weights import parameters
from quire_engine.runner.roofline import (
    bytes_read,
    has_8_bit_linears,
    make_roofline,
    measure_ceilings,
    num_layer_parameters,
    under,
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class H200:
    """What torch says of one."""

    name: str = "NVIDIA H200"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132
    clock_rate: int = 1_980_000
    memory_clock_rate: int = 3_201_000
    memory_bus_width: int = 6016


def test_the_peaks_of_a_gpu_that_nobody_measured_are_those_of_its_data_sheet() -> None:
    spec = read_spec(CONFIG)
    device = H200(name="NVIDIA H200 of another make")
    roofline = make_roofline(spec, weight_bytes=1, block_bytes=1, device=device)

    assert roofline.peak_bytes_per_s == pytest.approx(4.8e12, rel=0.01)
    assert roofline.peak_flops == pytest.approx(989e12, rel=0.1)


def test_the_peaks_of_an_h200_are_those_that_were_measured() -> None:
    spec = read_spec(CONFIG)
    wide, narrow = (
        make_roofline(spec, weight_bytes=1, block_bytes=1, device=H200(), is_8_bit=is_8_bit)
        for is_8_bit in (False, True)
    )

    assert (wide.peak_bytes_per_s, wide.peak_flops) == (4.46e12, 773e12)
    assert (narrow.peak_bytes_per_s, narrow.peak_flops) == (4.46e12, 2 * 773e12)


def test_a_device_that_is_no_gpu_has_peaks_once_it_was_measured() -> None:
    roofline = make_roofline(read_spec(CONFIG), weight_bytes=1, block_bytes=1)
    assert roofline.shares(CoreStats(prefill_tokens_per_s=1e4, decode_step_s=1.0)) == {}

    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)

    assert ceilings.source == "measured on this CPU at the start"
    shares = under(roofline, ceilings).shares(
        CoreStats(prefill_tokens_per_s=1e4, decode_step_s=1.0)
    )
    assert 0.0 < shares["decode"] < 1e-6
    assert 0.0 < shares["prefill"] < 1.0


def test_attention_counts_every_pair_of_tokens_twice() -> None:
    spec = read_spec(CONFIG)
    roofline = make_roofline(spec, weight_bytes=1, block_bytes=1)

    # Two layers of 4 heads of 8; keys and values, an addition and a multiplication each.
    assert roofline.flops(10, 30) - roofline.flops(10) == 30 * 2 * 4 * 8 * 2 * 2


def test_a_device_of_unknown_kind_has_no_arithmetic_peak() -> None:
    spec = read_spec(CONFIG)
    roofline = make_roofline(
        spec, weight_bytes=1, block_bytes=1, device=H200(major=99, name="unheard of")
    )

    assert roofline.shares(CoreStats(prefill_tokens_per_s=1e4)) == {}


def test_linears_in_8_bits_are_told_from_their_weights() -> None:
    weight = torch.zeros(4, 4)
    weights = {"layers.0.qkv.weight": weight, "norm.weight": weight[0]}
    assert not has_8_bit_linears(weights)
    assert has_8_bit_linears(weights | {"layers.0.out.weight": weight.to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("is_tied", [False, True])
def test_an_embedding_is_read_whole_only_where_it_is_the_head(is_tied: bool) -> None:
    spec = read_spec({**CONFIG, "tie_word_embeddings": is_tied})
    weights = {
        item.name: torch.empty(item.shape, dtype=torch.bfloat16) for item in parameters(spec)
    }
    num_bytes = sum(tensor.nbytes for tensor in weights.values())

    skipped = 0 if is_tied else 100 * 32 * 2
    assert bytes_read(spec, weights) == num_bytes - skipped


def test_a_prompt_token_is_multiplied_with_the_layers_alone() -> None:
    # Per layer: q, k, v and out; gate, up and down; two norms.
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 32

    assert num_layer_parameters(read_spec(CONFIG)) == 2 * layer
