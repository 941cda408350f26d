"""Engines of models with random weights, of real shapes but few layers, on any device."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire_engine.config import EngineConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.runner.factory import build_runner

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
}
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = LLAMA_8B | {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WIDE_CACHE: dict[str, Any] = QWEN3_06B | {
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
"""Computes little for the keys and values that it keeps, so that a test can fill a large cache."""


def new_core(
    folder: Path,
    model: Mapping[str, Any],
    *,
    eos_token_ids: frozenset[int] = frozenset(),
    **options: Any,
) -> EngineCore:
    """Build an engine; options are fields of EngineConfig."""
    gc.collect()  # what a test before this one left on a GPU
    (folder / "config.json").write_text(json.dumps(model))
    config = EngineConfig.from_flat(
        {
            "model": str(folder),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
        }
        | options
    )
    return EngineCore(
        config, build_runner(config), prefix_model="random", eos_token_ids=eos_token_ids
    )
