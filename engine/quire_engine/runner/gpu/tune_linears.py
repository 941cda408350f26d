"""Measures linears' tiles on this machine's GPU and writes the table that serving reads.

    python -m quire_engine.runner.gpu.tune_linears MODEL_DIR \
        --table engine/quire_engine/kernels/gpu/tiles/h200.json

MODEL_DIR holds a config.json. The model is built with random weights, and a captured decode step is
timed with each choice of tiles for one linear after the other. What the table has of other products
and sizes stays as it is.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch

from quire_engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from quire_engine.kernels.gpu.tables import Tiles, shipped_table
from quire_engine.kernels.gpu.tune_linear import (
    Linear,
    Tuner,
    candidates,
    compile_one,
    linears_of,
)
from quire_engine.runner.factory import build_runner
from quire_engine.runner.gpu.graphs import StepGraphs
from quire_engine.runner.gpu.runner import GpuRunner

SIZES = (8, 4, 1, 16, 32, 64)
"""Most rows of x that a choice is for."""
NUM_ROUNDS = 12
NUM_REPETITIONS = 3

Job = tuple[Linear, int, Tiles]


class StepClock:
    """Times the captured decode steps of a model."""

    def __init__(self, runner: GpuRunner) -> None:
        self._runner = runner

    @torch.inference_mode()
    def __call__(self, num_tokens: int) -> float:
        """Capture a step with the table as it is; return the seconds that it takes."""
        with torch.cuda.stream(self._runner.stream):
            graphs = StepGraphs(self._runner.step)
            graphs.capture([num_tokens])
            graphs.decode(num_tokens)
            return statistics.median(
                self._seconds(graphs, num_tokens) for _ in range(NUM_REPETITIONS)
            )

    def _seconds(self, graphs: StepGraphs, num_tokens: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(NUM_ROUNDS):
            graphs.decode(num_tokens)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / NUM_ROUNDS / 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the linears of a model and write the table."""
    options = _parser().parse_args(arguments)
    stop_at = time.monotonic() + options.seconds

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    table = shipped_table()
    # Compiled here and by other processes, each candidate before it is timed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.num_processes, mp_context=context) as pool:
        linears = linears_of(options.model, 1 if options.quantization else 0)
        jobs: dict[Job, Future[None]] = {
            (linear, size, tiles): pool.submit(compile_one, linear, size, tiles)
            for size in options.sizes
            for linear in linears
            for tiles in candidates(linear.product, size, limit=options.limit)
        }
        runner = build_runner(_config(options))
        assert isinstance(runner, GpuRunner), "tiles are measured on a GPU"
        tuner = Tuner(
            table,
            StepClock(runner),
            say,
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
            stop_at=stop_at,
        )
        for size in options.sizes:
            for linear in linears:
                if time.monotonic() > stop_at:
                    continue
                choices = candidates(linear.product, size, limit=options.limit)
                good = [t for t in choices if not jobs[linear, size, t].exception()]
                tuner.tune(linear, size, good)
                options.table.write_text(table.dump())
        pool.shutdown(cancel_futures=True)


def _config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(
            model=str(options.model),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=2048,
            quantization=options.quantization,
            enforce_eager=True,
        ),
        cache=CacheConfig(gpu_memory_utilization=0.5),
        scheduler=SchedulerConfig(max_num_seqs=max(options.sizes)),
    )


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder with a config.json")
    parser.add_argument("--table", type=Path, required=True, help="file to write")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows")
    parser.add_argument("--seconds", type=float, default=600, help="when to stop")
    parser.add_argument("--limit", type=int, default=12, help="tiles to measure for each product")
    parser.add_argument("--num-processes", type=int, default=12, help="compilers at a time")
    parser.add_argument("--quantization", choices=("fp8",), help="measure quantized weights")
    return parser


if __name__ == "__main__":
    main()
