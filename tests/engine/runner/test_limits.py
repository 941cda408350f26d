import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.model.families import read_spec
from quire_engine.runner.factory import build_runner, resolve_device, resolve_dtype
from quire_engine.runner.gpu.memory import MemoryUse, cache_limits
from quire_engine.runner.memory import block_bytes, resolve_limits

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
SPEC = read_spec(CONFIG)
# Keys and values of 16 tokens in 2 layers, 2 heads of 8 dimensions, 4 bytes each.
BLOCK_BYTES = 2 * 16 * 2 * 2 * 8 * 4
NOTHING_USED = MemoryUse(total=1 << 30, others=0, weights=0, activations=0, rows=0, graphs=0)


def limits(**options: Any) -> Any:
    return resolve_limits(EngineConfig.from_flat(options), SPEC, torch.float32)


def test_a_gibibyte_is_the_default_cache() -> None:
    assert block_bytes(SPEC, 16, torch.float32) == BLOCK_BYTES
    assert limits().num_blocks == 2**30 // BLOCK_BYTES
    assert limits().max_model_len == 64
    assert limits().max_num_batched_tokens >= 512


def test_given_limits_are_kept() -> None:
    found = limits(
        num_gpu_blocks_override=5, max_model_len=50, max_num_batched_tokens=7, block_size=16
    )
    assert (found.num_blocks, found.max_model_len, found.max_num_batched_tokens) == (5, 50, 7)


def test_the_model_length_shrinks_to_what_the_cache_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert limits(kv_cache_memory_bytes=3 * BLOCK_BYTES + 5).max_model_len == 48
    assert "from=64 to=48" in caplog.text


def test_a_length_beyond_the_cache_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=50 does not fit: .* 48 tokens"):
        limits(kv_cache_memory_bytes=3 * BLOCK_BYTES, max_model_len=50)


def test_a_length_beyond_the_model_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=65 .* 64 tokens"):
        limits(max_model_len=65)


def test_a_cache_smaller_than_one_block_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=f"=100 does not hold one block, .* {BLOCK_BYTES} bytes"):
        limits(kv_cache_memory_bytes=100)


def test_dtype_names_are_understood() -> None:
    assert resolve_dtype("half") == torch.float16
    assert resolve_dtype("float") == torch.float32
    assert resolve_dtype("auto") in (torch.bfloat16, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="there is no CUDA device"):
        build_runner(EngineConfig.from_flat({"model": str(tiny_model), "device": "cuda"}))


def test_tensor_parallelism_on_a_cpu_is_refused(tiny_model: Path) -> None:
    options = {"model": str(tiny_model), "device": "cpu", "tensor_parallel_size": 2}
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 needs as many GPUs; a CPU"):
        build_runner(EngineConfig.from_flat(options))


def test_more_ranks_than_gpus_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"size=4 needs as many GPUs; this machine has 2$"):
        resolve_device(EngineConfig.from_flat({"tensor_parallel_size": 4}))
    assert resolve_device(EngineConfig.from_flat({"tensor_parallel_size": 2})) == "cuda"


def test_all_ranks_have_the_blocks_that_fit_on_each() -> None:
    others = [BLOCK_BYTES * 7, BLOCK_BYTES * 9]

    def least(num_blocks: int) -> int:
        return min(num_blocks, *(size // BLOCK_BYTES for size in others))

    def num_blocks(cache_bytes: int) -> int:
        config = EngineConfig.from_flat({"kv_cache_memory_bytes": cache_bytes})
        return cache_limits(config, SPEC, NOTHING_USED, torch.float32, agree=least).num_blocks

    assert num_blocks(BLOCK_BYTES * 6) == 6
    assert num_blocks(BLOCK_BYTES * 8) == 7


def test_loading_reports_its_phases(driver: Any) -> None:
    report = driver.runner.load_report
    assert list(report) == ["resolve", "weights", "kernels", "layout", "warm_up"]
    assert all(seconds >= 0 for seconds in report.values())
