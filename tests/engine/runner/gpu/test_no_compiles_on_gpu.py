"""Once an engine is ready, no request waits for a compiler, whatever it asks for."""

from pathlib import Path
from typing import Any

import pytest

from random_load import RandomLoad
from random_models import LLAMA_8B, QWEN3_06B, new_core

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (LLAMA_8B, {}),
    "llama-fp8": (LLAMA_8B, {"quantization": "fp8", "kv_cache_dtype": "fp8"}),
    "llama-invariant": (LLAMA_8B, {"batch_invariant": True}),
    "qwen3": (QWEN3_06B | {"num_hidden_layers": 2}, {}),
    "qwen3-eager": (QWEN3_06B | {"num_hidden_layers": 2}, {"enforce_eager": True}),
}
EOS = frozenset({7})


@pytest.mark.parametrize("name", ENGINES)
def test_no_kernel_is_compiled_after_ready(name: str, tmp_path: Path) -> None:
    model, options = ENGINES[name]
    core = new_core(
        tmp_path,
        model,
        eos_token_ids=EOS,
        num_gpu_blocks_override=1200,  # few enough for preemption,
        watermark=0.0,  # which nothing is kept back to avoid
        max_model_len=9216,
        **options,
    )
    load = RandomLoad(
        core=core,
        vocab_size=model["vocab_size"],
        longest_prompt=9000,
        longest_output=400,
        seed=1,
        max_num_live=300,
        eos_token_ids=EOS,
    )

    for max_num_live, num_turns in ((300, 150), (40, 40), (3, 60)):
        load.max_num_live = max_num_live
        for _ in range(num_turns):
            load.turn()
    load.finish()

    assert core.stats.num_preemptions > 0
    assert core.stats.num_prefix_hit_tokens > 0
    compiles = core._runner.compiles  # type: ignore[attr-defined]  # a GPU's runner has it
    assert compiles.names == []
    assert core.stats.num_compiles_after_ready == 0
