"""The planner's formulas against the buffers that the GPU engine allocates, made on a CPU."""

from math import prod
from typing import Any

import pytest
import torch

from quire_engine.model.families import read_spec
from quire_engine.model.weights import num_parameters, parameters
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.decoder import Workspace
from quire_engine.runner.gpu.rows import Rows
from quire_operator.capacity import Workload, footprint_of_config
from quire_operator.capacity.memory import activation_bytes, table_bytes

CPU = torch.device("cpu")
CONFIGS: list[dict[str, Any]] = [
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 5000,
        "max_position_embeddings": 4096,
    }
    for hidden, heads, kv_heads, head_dim in ((256, 4, 4, 64), (512, 8, 2, 128), (640, 10, 5, 80))
]


def bytes_in(*holders: object) -> int:
    values = [value for holder in holders for value in vars(holder).values()]
    # One tensor may have two names.
    tensors = {value.data_ptr(): value for value in values if isinstance(value, torch.Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"head_dim={config['head_dim']}")
def test_the_step_s_buffers_are_those_planned(config: dict[str, Any]) -> None:
    spec, workload = read_spec(config), Workload(max_num_batched_tokens=512)
    space = Workspace(spec, 512, torch.bfloat16, CPU)
    # The MLP's own, which it makes in each step: gate and up, their product, and the input's norm.
    mlp = 2 * 512 * (3 * spec.intermediate_size + spec.hidden_size)

    planned = activation_bytes(footprint_of_config(config), workload)

    assert planned == bytes_in(space) + mlp


@pytest.mark.parametrize("max_model_len", [None, 1000])
def test_the_tables_of_live_sequences_are_those_planned(max_model_len: int | None) -> None:
    config = CONFIGS[0]
    spec = read_spec(config)
    longest = max_model_len or spec.max_position
    rows = Rows(max_num_seqs=32, max_model_len=longest, block_size=16, device=CPU)
    logits = 32 * spec.vocab_size * 2
    counts, edited = 33 * spec.vocab_size * 2, 32 * spec.vocab_size * 4
    rope = longest * spec.head_dim * 2
    allocated = bytes_in(rows) + logits + counts + edited + rope

    workload = Workload(max_num_seqs=32, max_model_len=max_model_len)

    assert table_bytes(footprint_of_config(config), workload) == pytest.approx(allocated, rel=0.02)


@pytest.mark.parametrize("scheme", ["by row", "in blocks"])
def test_8_bit_weights_take_what_the_engine_makes_of_them(scheme: str) -> None:
    config = CONFIGS[1]
    spec = read_spec(config)
    quantization: dict[str, Any] = {"quant_method": "fp8"}
    if scheme == "in blocks":
        quantization["weight_block_size"] = [128, 128]
    weights = [parameter for parameter in parameters(spec) if len(parameter.shape) == 2]
    linear = [parameter for parameter in weights if parameter.name.startswith("layers.")]
    scales = [4 * p.shape[0] if scheme == "by row" else 4 * prod(p.shape) / 128**2 for p in linear]
    others = 2 * (num_parameters(spec) - sum(prod(p.shape) for p in linear))
    engine_bytes = sum(prod(p.shape) for p in linear) + sum(scales) + others

    footprint = footprint_of_config(config | {"quantization_config": quantization})

    assert footprint.weight_bytes == pytest.approx(engine_bytes, rel=0.01)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_the_cache_takes_what_its_tokens_are_planned_to(kv_cache_dtype: str) -> None:
    config = CONFIGS[1]
    dtype = torch.bfloat16 if kv_cache_dtype == "auto" else torch.float8_e4m3fn
    cache = GpuKvCache(read_spec(config), num_blocks=7, block_size=16, dtype=dtype, device=CPU)

    footprint = footprint_of_config(config, kv_cache_dtype=kv_cache_dtype)

    assert cache.memory.nbytes == 7 * 16 * footprint.kv_bytes_per_token
