"""A model that ranks share computes what it computes alone: real processes, gloo in NCCL's place.

The kernels of GPUs are interpreted, unless there is a GPU.
"""

import os
import subprocess
import sys
from statistics import fmean

import pytest

from gpu_runner_support import run, tokens_of, workload
from group_support import SETTINGS, logprobs_of
from quire_engine.runner.group.group_runner import build_group
from quire_engine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=2)
SEEDED = SamplingParams(temperature=0.9, top_p=0.8, seed=7, max_tokens=2)
SCORED = SamplingParams(
    temperature=0.8, repetition_penalty=1.1, seed=2, logprobs=2, prompt_logprobs=2, max_tokens=2
)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "biased"])
def test_two_ranks_compute_what_one_computes(name: str) -> None:
    setting = SETTINGS[name]()
    sequences = workload([1, 9, 18], [GREEDY, SCORED, SEEDED])
    runner = build_group("group_support:build_setting", name, 2)

    got = run(setting.core(runner), sequences)
    runner.close()

    expected = run(setting.core(setting.cpu_runner()), sequences)
    assert tokens_of(got) == tokens_of(expected)
    scores = logprobs_of(got[1])
    assert len(scores) == 8 + 2
    assert scores == pytest.approx(logprobs_of(expected[1]), abs=1e-3)


def test_three_ranks_compute_what_one_computes() -> None:
    setting = SETTINGS["biased"]()
    sequences = workload([3], [SEEDED.clone(max_tokens=2)])
    runner = build_group("group_support:build_setting", "biased", 3)

    got = run(setting.core(runner), sequences)
    runner.close()

    assert tokens_of(got) == tokens_of(run(setting.core(setting.cpu_runner()), sequences))


def test_two_ranks_of_an_8_bit_model_are_close_to_one() -> None:
    setting = SETTINGS["8-bit"]()
    sequences = workload([12], [GREEDY.clone(prompt_logprobs=0, max_tokens=1)])
    runner = build_group("group_support:build_setting", "8-bit", 2)

    got = logprobs_of(run(setting.core(runner), sequences)[0])
    runner.close()

    # Each rank rounds its own part of the rows that a sum multiplies, by a scale of its own.
    expected = logprobs_of(run(setting.core(setting.gpu_runner()), sequences)[0])
    assert len(got) == 11
    assert fmean(abs(a - b) for a, b in zip(got, expected, strict=True)) < 0.2


def test_sums_are_right_and_can_be_timed() -> None:
    command = [sys.executable, "-m", "quire_engine.runner.group.time_sums", "--ranks=2"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    assert "8 rows  " in done.stdout
