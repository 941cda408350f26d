"""Decode steps to choose tiles by: whole, captured, of a model with random weights.

What `tune_linears.py` and `tune_decode.py` share.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from quire_engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from quire_engine.errors import ConfigError, QuireError
from quire_engine.kernels.gpu.compile_ahead import compile_ahead
from quire_engine.model.families import read_spec
from quire_engine.model.source import resolve
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.factory import build_runner
from quire_engine.runner.gpu.graphs import StepGraphs
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.sampling_params import SamplingParams

NUM_ROUNDS = 12
NUM_REPETITIONS = 3
GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


class Batches:
    """Puts batches of long sequences into a runner, whose next step is then one token of each.

    Nobody computes their prompts: they lie in random blocks, with what these hold.
    """

    def __init__(self, runner: GpuRunner) -> None:
        self._runner = runner
        self._live: list[int] = []

    def put(self, num_sequences: int, context: int) -> None:
        """Compute a step of so many sequences, each with `context` keys.

        Raises:
            ConfigError: the cache does not hold them.
        """
        limits = self._runner.limits
        blocks_each = -(-context // limits.block_size)
        num_blocks = num_sequences * blocks_each
        if num_blocks > limits.num_blocks:
            raise ConfigError(
                f"{num_sequences} sequences of {context} tokens take {num_blocks} blocks and the "
                f"cache has {limits.num_blocks}; use a shorter --context or smaller --sizes"
            )
        blocks = random.Random(0).sample(range(limits.num_blocks), num_blocks)
        seq_ids = list(range(num_sequences))
        admitted = [
            AdmittedSequence(
                seq_id=seq_id,
                token_ids=[0] * context,
                num_prompt_tokens=context,
                block_ids=blocks[seq_id * blocks_each : (seq_id + 1) * blocks_each],
                num_computed_tokens=context - 1,
                params=GREEDY,
            )
            for seq_id in seq_ids
        ]
        self._runner.launch(StepPlan(dropped=self._live)).wait()
        self._live = seq_ids
        plan = StepPlan(admitted=admitted, num_tokens=dict.fromkeys(seq_ids, 1))
        self._runner.launch(plan).wait()


class StepClock:
    """Times the captured decode steps of a model."""

    def __init__(self, runner: GpuRunner, contexts_of: Callable[[int], Sequence[int]]) -> None:
        """Take a runner, and the lengths of sequences to time each batch size with."""
        self._runner, self._contexts_of = runner, contexts_of
        self._batches = Batches(runner)

    @torch.inference_mode()
    def __call__(self, num_tokens: int) -> float:
        """Capture a step with the tables as they are; return its seconds, the mean of all lengths.

        The mean is a geometric one: a percent of a short step is worth as much as one of a long.
        """
        with torch.cuda.stream(self._runner.stream):
            graphs = StepGraphs(self._runner.step)
            graphs.capture([num_tokens])
            return statistics.geometric_mean(
                self._median(graphs, num_tokens, context)
                for context in self._contexts_of(num_tokens)
            )

    @torch.inference_mode()
    def compile(self, num_tokens: int, puts: Sequence[Callable[[], None]]) -> None:
        """Compile what a step launches after each of some changes to the tables."""

        def run() -> None:
            for put in puts:
                put()
                self._runner.step.decode(num_tokens)

        with torch.cuda.stream(self._runner.stream):
            compile_ahead(run, self._runner.step.logits_SV.device)

    def _median(self, graphs: StepGraphs, num_tokens: int, context: int) -> float:
        self._batches.put(num_tokens, context)
        graphs.decode(num_tokens)
        return statistics.median(self._seconds(graphs, num_tokens) for _ in range(NUM_REPETITIONS))

    def _seconds(self, graphs: StepGraphs, num_tokens: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(NUM_ROUNDS):
            graphs.decode(num_tokens)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / NUM_ROUNDS / 1e3


def tuning_parser(
    description: str, *, contexts: Mapping[int, Sequence[int]]
) -> argparse.ArgumentParser:
    """Return the arguments of every tuner; `contexts` are the lengths for each batch size."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="folder with a config.json")
    parser.add_argument("--table", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=tuple(contexts), help="rows of a step"
    )
    parser.add_argument(
        "--context",
        type=int,
        nargs="+",
        help=f"keys of each sequence; by default, for each size: {dict(contexts)}",
    )
    parser.add_argument("--seconds", type=float, default=600, help="when to stop")
    return parser


def contexts_from(
    options: argparse.Namespace, contexts: Mapping[int, Sequence[int]]
) -> dict[int, Sequence[int]]:
    """Return the lengths to time each size with: those asked for, or those of the next size."""

    def default(size: int) -> Sequence[int]:
        return contexts[min((known for known in contexts if known >= size), default=max(contexts))]

    return {size: options.context or default(size) for size in options.sizes}


def tuned_runner(
    model: Path,
    contexts: Mapping[int, Sequence[int]],
    *,
    memory_share: float,
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> GpuRunner:
    """Build a model with random weights for steps of some sizes and lengths.

    Raises:
        ConfigError: the model does not do what is asked for.
    """
    longest = max(max(lengths) for lengths in contexts.values())
    config = EngineConfig(
        model=replace(
            _random_weights(model),
            max_model_len=longest + 1,
            quantization=quantization,
            enforce_eager=True,
        ),
        cache=CacheConfig(kv_cache_dtype=kv_cache_dtype, gpu_memory_utilization=memory_share),
        scheduler=SchedulerConfig(max_num_seqs=max(contexts)),
    )
    runner = build_runner(config)
    assert isinstance(runner, GpuRunner), "tiles are measured on a GPU"
    return runner


def spec_of(model: Path) -> ModelSpec:
    """Read what a model is made of.

    Raises:
        ConfigError: the folder has no config.json, or one of a model that is not known.
    """
    return read_spec(resolve(_random_weights(model)).config)


def _random_weights(model: Path) -> ModelConfig:
    return ModelConfig(
        model=str(model), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16"
    )


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def reported(tune: Callable[[], None]) -> int:
    """Run a tuner; return its exit status, after saying what is wrong with what was asked for."""
    try:
        if not torch.cuda.is_available():
            raise ConfigError("no CUDA device; tiles are measured on the GPU they are for")
        tune()
    except QuireError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
