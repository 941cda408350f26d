"""A random mix of requests on the CPU; `gpu/test_random_load_on_gpu.py` runs it on a GPU."""

from pathlib import Path

from quire_engine.config import EngineConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.runner.factory import build_runner
from random_load import RandomLoad

VOCAB_SIZE = 211
EOS = frozenset({7})


def test_a_random_mix_is_answered_and_leaves_nothing_behind(tiny_model: Path) -> None:
    config = EngineConfig.from_flat(
        {
            "model": str(tiny_model),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "device": "cpu",
            "num_gpu_blocks_override": 40,
            "max_model_len": 200,
            "max_num_seqs": 12,
            "max_num_batched_tokens": 128,
            "watermark": 0.0,
        }
    )
    core = EngineCore(config, build_runner(config), prefix_model="tiny", eos_token_ids=EOS)
    load = RandomLoad(
        core=core,
        vocab_size=VOCAB_SIZE,
        longest_prompt=150,
        longest_output=60,
        seed=0,
        max_num_live=20,
        eos_token_ids=EOS,
    )

    for _ in range(400):
        load.turn()
    load.finish()

    happened = {name: load.counts[name] > 0 for name in ("stop", "length", "aborted")}
    assert happened == dict.fromkeys(happened, True)
    assert load.counts["with prompt_logprobs"] > 0
    assert core.stats.num_preemptions > 0
    assert core.stats.num_prefix_hit_tokens > 0
    assert core.stats.num_compiles_after_ready == 0
