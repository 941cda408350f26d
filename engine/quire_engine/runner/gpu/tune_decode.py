"""Measures decode attention's tiles on this machine's GPU and writes the table that serving reads.

    python -m quire_engine.runner.gpu.tune_decode MODEL_DIR \
        --table engine/quire_engine/kernels/gpu/tiles/h200_attention.json

MODEL_DIR holds a config.json. The model is built with random weights, and a captured decode step of
each size is timed, with sequences of some lengths and each choice of tiles. A size's tiles hold for
batches up to it. What the table has of other models and sizes stays as it is.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from quire_engine.config import KV_CACHE_DTYPES
from quire_engine.kernels.gpu.attention_tiles import Heads, shipped_attention_table
from quire_engine.kernels.gpu.step_tuner import StepTuner
from quire_engine.kernels.gpu.tune_decode import MAX_PROGRAMS, DecodeChoice, tune
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.gpu.attention import num_processors
from quire_engine.runner.gpu.build import KV_DTYPES
from quire_engine.runner.gpu.tuning import (
    StepClock,
    contexts_from,
    reported,
    say,
    spec_of,
    tuned_runner,
    tuning_parser,
)

CONTEXTS: Mapping[int, Sequence[int]] = {
    1: (256, 8192),
    8: (640, 4096),
    16: (640, 8192),
    64: (384, 2048),
    256: (640, 1152),
}
"""Keys of each sequence, by batch size. The choice cannot depend on them: a graph serves any."""
MEMORY_SHARE = 0.85


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the attention of a model's decode steps and write the table."""
    return reported(partial(_tune, _parse(arguments)))


def _tune(options: argparse.Namespace) -> None:
    stop_at = time.monotonic() + options.seconds
    contexts = contexts_from(options, CONTEXTS)
    kv_dtype = KV_DTYPES.get(options.kv_cache_dtype, torch.bfloat16)
    heads, table = heads_of(spec_of(options.model), kv_dtype), shipped_attention_table()
    # Plans get the room that the table asks for when they are made.
    largest = max(contexts)
    before = table.decode(heads, largest)
    table.put_decode(heads, largest, replace(before, programs_per_processor=MAX_PROGRAMS))
    runner = tuned_runner(
        options.model,
        contexts,
        memory_share=MEMORY_SHARE,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    table.put_decode(heads, largest, before)
    device = runner.step.logits_SV.device
    clock = StepClock(runner, contexts.__getitem__)
    tuner = StepTuner(clock, say, stop_at=stop_at)
    for size in contexts:
        choice = DecodeChoice(
            table,
            heads,
            size,
            device=device,
            kv_dtype=kv_dtype,
            num_processors=num_processors(device),
        )
        tune(choice, size, tuner, clock.compile)
        options.table.write_text(table.dump())


def heads_of(spec: ModelSpec, kv_dtype: torch.dtype) -> Heads:
    """Return what the choice depends on of a model."""
    return Heads(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        kv_bytes=kv_dtype.itemsize,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = tuning_parser(__doc__.splitlines()[0], contexts=CONTEXTS)
    parser.add_argument("--kv-cache-dtype", choices=KV_CACHE_DTYPES, default="auto")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
