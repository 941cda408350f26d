"""What a decoder of GPUs leaves out when only its kernels are asked for."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from gpu_runner_support import MODEL
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.spec import LayerSpec, ModelSpec
from quire_engine.model.weight_places import assemble
from quire_engine.runner.gpu.decoder import GpuDecoder

LAYER = read_spec(MODEL).layers[0]


def num_few(layers: Sequence[LayerSpec], **other_dtypes: torch.dtype) -> int:
    """Count the few layers of a decoder some of whose weights are of another type."""
    spec: ModelSpec = replace(read_spec(MODEL), layers=tuple(layers))
    weights = assemble(spec, make_dummy(spec, torch.float32, 0), torch.float32)
    for name, dtype in other_dtypes.items():
        weights[name] = weights[name].to(dtype)
    decoder = GpuDecoder(spec, weights, max_len=64, max_num_tokens=8)
    with decoder.few_layers():
        num_few = decoder.num_pieces
    assert decoder.num_pieces == len(layers)
    return num_few


def test_of_equal_layers_one_is_left_and_the_last() -> None:
    assert num_few([LAYER] * 5) == 2
    assert num_few([LAYER]) == 1


def test_a_layer_of_each_kind_of_attention_is_left() -> None:
    windowed = replace(LAYER, sliding_window=24)
    assert num_few([LAYER, windowed, LAYER, windowed, windowed]) == 3


def test_a_layer_of_each_kind_of_weights_is_left() -> None:
    assert num_few([LAYER] * 5, **{"layers.1.down.weight": torch.bfloat16}) == 3
