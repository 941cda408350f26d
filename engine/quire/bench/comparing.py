"""Runs a comparison with real models, and prints it."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from quire.bench.compare import (
    CompareConfig,
    Comparison,
    QuireGenerator,
    compare_json,
    format_comparison,
)
from quire.bench.offline import make_llm, write_json
from quire.bench.progress import progress
from quire.bench.transformers_generator import TransformersGenerator
from quire_engine.config import EngineConfig
from quire_engine.model.source import resolve

DTYPES = {"half": "float16", "float": "float32", "auto": "bfloat16"}


def run_comparison(
    options: Mapping[str, Any],
    config: CompareConfig,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure, print the table, and return (and keep) the result."""
    import torch

    source = resolve(EngineConfig.from_flat(options).model)
    dtype = DTYPES.get(options["dtype"], options["dtype"])
    device = "cuda" if torch.cuda.is_available() and options.get("device") != "cpu" else "cpu"
    comparison = Comparison(
        config, int(source.config["vocab_size"]), seed=options.get("seed", 0), clock=clock
    )
    transformers = TransformersGenerator.load(source, dtype, device)
    llm = make_llm(options)
    try:
        quire = QuireGenerator(llm)
        with progress("rounds", config.num_rounds + 1) as advance:
            speeds = comparison.speeds(quire, transformers, on_round=advance)
        prefix = comparison.prefix_hit(quire)
    finally:
        llm.close()
    sys.stdout.write(format_comparison(speeds, prefix, config.prefix_len) + "\n")
    about = {
        "model_id": source.name,
        "dtype": dtype,
        "device": device,
        "num_threads": torch.get_num_threads(),
        "num_rounds": config.num_rounds,
    }
    result = compare_json(speeds, prefix, about)
    write_json(config.output_json, result)
    return result
