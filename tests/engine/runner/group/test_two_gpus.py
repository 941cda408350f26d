"""A model on two GPUs: NCCL, symmetric memory, and both inside CUDA graphs."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from gpu_runner_support import run, tokens_of, workload
from group_support import logprobs_of
from quire_engine.core.engine_core import EngineCore
from quire_engine.sampling_params import SamplingParams
from random_models import LLAMA_8B, QWEN3_06B, new_core

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(300)]

MODELS = {"llama": LLAMA_8B, "qwen3": QWEN3_06B | {"num_hidden_layers": 4}}
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
SCORED = GREEDY.clone(prompt_logprobs=0)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=17)
PENALISED = SAMPLED.clone(repetition_penalty=1.2, logprobs=2)


def build(folder: Path, name: str, **options: Any) -> EngineCore:
    return new_core(
        folder,
        MODELS[name],
        **{"num_gpu_blocks_override": 3000, "max_model_len": 2048} | options,
    )


@pytest.mark.parametrize("options", [{}, {"quantization": "fp8"}, {"enforce_eager": True}])
@pytest.mark.parametrize("name", MODELS)
def test_two_gpus_compute_what_one_computes(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    sequences = workload([300, 40, 200], [SCORED])
    alone = run(build(tmp_path, name, **options), sequences)

    together = run(build(tmp_path, name, tensor_parallel_size=2, **options), sequences)

    for seq_id, outputs in alone.items():
        got, expected = logprobs_of(together[seq_id]), logprobs_of(outputs)
        assert len(got) == len(expected) > 30
        assert fmean(abs(a - b) for a, b in zip(got, expected, strict=True)) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_graphs_change_nothing_on_two_gpus(name: str, tmp_path: Path) -> None:
    sequences = workload([64] * 8, [GREEDY])
    eager = build(tmp_path, name, tensor_parallel_size=2, enforce_eager=True)
    expected = tokens_of(run(eager, sequences))
    del eager

    assert tokens_of(run(build(tmp_path, name, tensor_parallel_size=2), sequences)) == expected


def test_a_mixed_load_runs_to_its_end_on_two_gpus(tmp_path: Path) -> None:
    lens = [1 + 37 * index % 1500 for index in range(120)]
    core = build(tmp_path, "llama", tensor_parallel_size=2, max_num_seqs=48)

    heard = run(core, workload(lens, [GREEDY, SAMPLED, PENALISED]))

    assert {len(tokens) for tokens in tokens_of(heard).values()} == {24, 17}
