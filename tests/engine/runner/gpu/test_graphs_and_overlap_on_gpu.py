"""CUDA graphs and the overlap of CPU and GPU change how fast tokens come, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from gpu_runner_support import run, tokens_of, workload
from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import NewSequence
from quire_engine.sampling_params import SamplingParams
from random_models import LLAMA_8B, QWEN3_06B, new_core

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MODELS = {"llama": LLAMA_8B, "qwen3": QWEN3_06B | {"num_hidden_layers": 4}}
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, logprobs=2)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, seed=5, max_tokens=25)
PENALISED = SAMPLED.clone(repetition_penalty=1.2, frequency_penalty=0.3, max_tokens=33)
SHORT = SAMPLED.clone(seed=6, max_tokens=3)

INVARIANT: dict[str, Any] = {
    "batch_invariant": True,
    "max_num_seqs": 40,
    # How much of a prompt is cached when it is admitted depends on the overlap.
    "enable_prefix_caching": False,
}

Told = tuple[dict[int, list[int]], list[float]]


def build(folder: Path, name: str, **options: Any) -> EngineCore:
    return new_core(
        folder,
        MODELS[name],
        **{"num_gpu_blocks_override": 3000, "max_model_len": 2048} | options,
    )


def mixed(num_sequences: int) -> list[NewSequence]:
    """Return prompts of many lengths that end at different times, more than run at once."""
    lens = [1 + 37 * index % 300 for index in range(num_sequences)]
    return workload(lens, [GREEDY, SAMPLED, PENALISED, SHORT])


def uniform(num_sequences: int) -> list[NewSequence]:
    """Return prompts that decode side by side from the first step to the last."""
    return workload([64] * num_sequences, [GREEDY])


def told(core: EngineCore, sequences: list[NewSequence]) -> Told:
    """Return the tokens of each sequence, and their logprobs, which are sums of a batch's rows."""
    heard = run(core, sequences)
    logprobs = [
        value
        for _, outputs in sorted(heard.items())
        for output in outputs
        for piece in output.logprobs or []
        for value in piece.logprobs
    ]
    return tokens_of(heard), logprobs


def assert_same(one: Told, other: Told) -> None:
    assert one[0] == other[0]
    assert one[1] == pytest.approx(other[1], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_change_nothing_in_any_batch(name: str, tmp_path: Path) -> None:
    expected = told(build(tmp_path, name, **INVARIANT, enforce_eager=True), mixed(60))

    assert_same(told(build(tmp_path, name, **INVARIANT), mixed(60)), expected)


@pytest.mark.parametrize("num_sequences", [1, 8, 64])
def test_graphs_change_nothing_at_the_sizes_that_are_captured(
    num_sequences: int, tmp_path: Path
) -> None:
    # Without a cache all prompts are one step, of a size that is captured or too large for it:
    # where a graph pads, the library may multiply in another way.
    options: dict[str, Any] = {"enable_prefix_caching": False}
    sequences = uniform(num_sequences)
    expected = told(build(tmp_path, "llama", **options, enforce_eager=True), sequences)

    assert_same(told(build(tmp_path, "llama", **options), sequences), expected)


@pytest.mark.parametrize("name", MODELS)
def test_overlap_changes_nothing(name: str, tmp_path: Path) -> None:
    overlapping = build(tmp_path, name, **INVARIANT)
    in_turns = build(tmp_path, name, **INVARIANT)
    assert overlapping._runner.max_num_in_flight == 2
    in_turns._runner.max_num_in_flight = 1  # type: ignore[misc]  # a constant of its class

    assert_same(told(overlapping, mixed(60)), told(in_turns, mixed(60)))


def test_a_stop_that_is_seen_one_step_late_adds_no_token(tmp_path: Path) -> None:
    core = build(tmp_path, "qwen3")
    free = tokens_of(run(core, uniform(1)))[0]
    [sequence] = uniform(1)
    sequence.params = GREEDY.clone(stop_token_ids=[free[10]])

    core = build(tmp_path, "qwen3")
    stopped = tokens_of(run(core, [sequence]))[0]

    assert stopped == free[: free.index(free[10]) + 1]
    assert core.stats.num_used_blocks == 0
