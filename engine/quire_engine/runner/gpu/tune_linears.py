"""Measures linears' tiles on this machine's GPU and writes the table that serving reads.

    python -m quire_engine.runner.gpu.tune_linears MODEL_DIR \
        --table engine/quire_engine/kernels/gpu/tiles/h200.json

MODEL_DIR holds a config.json. The model is built with random weights, and a captured decode step is
timed with each choice of tiles for one linear after the other. What the table has of other products
and sizes stays as it is.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial

import torch

from quire_engine.kernels.gpu.step_tuner import StepTuner
from quire_engine.kernels.gpu.tables import Tiles, shipped_table
from quire_engine.kernels.gpu.tune_linear import (
    Linear,
    LinearChoice,
    candidates,
    compile_one,
    linears_of,
)
from quire_engine.runner.gpu.tuning import (
    StepClock,
    contexts_from,
    reported,
    say,
    spec_of,
    tuned_runner,
    tuning_parser,
)

CONTEXTS: Mapping[int, Sequence[int]] = dict.fromkeys((8, 4, 1, 16, 32, 64), (512,))
"""Keys of each sequence, by the most rows of x that a choice is for."""
LINEARS = ("qkv", "out", "gate_up", "down", "head")
MEMORY_SHARE = 0.5
"""Of the GPU: the rest is for the processes that compile."""

Job = tuple[Linear, int, Tiles]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the linears of a model and write the table."""
    return reported(partial(_tune, _parse(arguments)))


def _tune(options: argparse.Namespace) -> None:
    stop_at = time.monotonic() + options.seconds
    contexts = contexts_from(options, CONTEXTS)
    table = shipped_table()
    # Compiled here and by other processes, each candidate before it is timed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.num_processes, mp_context=context) as pool:
        linears = [
            linear
            for linear in linears_of(spec_of(options.model), 1 if options.quantization else 0)
            if linear.name in options.linears
        ]
        choices = {
            (linear, size): candidates(
                linear.product,
                size,
                limit=options.limit,
                current=table.choose(linear.product, size),
            )
            for size in contexts
            for linear in linears
        }
        jobs: dict[Job, Future[None]] = {
            (linear, size, tiles): pool.submit(compile_one, linear, size, tiles)
            for (linear, size), found in choices.items()
            for tiles in found
        }
        runner = tuned_runner(
            options.model,
            contexts,
            memory_share=MEMORY_SHARE,
            quantization=options.quantization,
        )
        tuner = StepTuner(StepClock(runner, contexts.__getitem__), say, stop_at=stop_at)
        for (linear, size), found in choices.items():
            if tuner.is_out_of_time:
                break
            good = [tiles for tiles in found if not jobs[linear, size, tiles].exception()]
            choice = LinearChoice(
                table, linear, size, device=torch.device("cuda"), dtype=torch.bfloat16
            )
            tuner.tune(choice, size, [None, *good])
            options.table.write_text(table.dump())
        pool.shutdown(cancel_futures=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = tuning_parser(__doc__.splitlines()[0], contexts=CONTEXTS)
    parser.add_argument("--limit", type=int, default=12, help="tiles to measure for each product")
    parser.add_argument(
        "--linears", nargs="+", choices=LINEARS, default=LINEARS, help="which to measure"
    )
    parser.add_argument("--num-processes", type=int, default=12, help="compilers at a time")
    parser.add_argument("--quantization", choices=("fp8",), help="measure quantized weights")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
