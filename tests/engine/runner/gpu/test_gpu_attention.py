"""Prompts that begin in one step are attended in batches, where that may be."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpu_runner_support import Setting, run, tokens_of, workload
from quire_engine.config import DeviceConfig
from quire_engine.kernels.gpu.fresh_attention import FreshBatch, FreshShape, fresh_attention
from quire_engine.runner.gpu import attention
from quire_engine.sampling_params import SamplingParams

pytestmark = pytest.mark.timeout(300)

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)
SHAPES = frozenset({FreshShape(1, 32), FreshShape(2, 32)})


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> set[FreshBatch]:
    """Plan for short prompts, as cuDNN does for long ones, and note what is attended so."""
    noted: set[FreshBatch] = set()

    def attend(
        heads_TXD: torch.Tensor,
        out_THD: torch.Tensor,
        batch: FreshBatch,
        **options: Any,
    ) -> None:
        noted.add(batch)
        fresh_attention(heads_TXD, out_THD, batch, **options)

    monkeypatch.setattr(attention, "plan_fresh", lambda *_, **__: SHAPES)
    monkeypatch.setattr(attention, "MULTIPLE", 32)
    monkeypatch.setattr(attention, "fresh_attention", attend)
    return noted


def test_prompts_of_equal_length_in_one_batch_give_the_tokens_of_the_cpu(
    batches: set[FreshBatch],
) -> None:
    setting = Setting(budget=69)
    sequences = workload([5, 32, 32, 45, 20], [GREEDY])

    got = tokens_of(run(setting.core(setting.gpu_runner()), sequences))

    assert batches == {
        FreshBatch(first_token=5, shape=FreshShape(2, 32)),
        FreshBatch(first_token=3, shape=FreshShape(1, 32)),
    }
    assert got == tokens_of(run(setting.core(setting.cpu_runner()), sequences))


@pytest.mark.parametrize(("family", "is_invariant"), [("llama", True), ("mistral", False)])
def test_prompts_are_not_batched_where_bits_may_not_change_or_windows_hide_keys(
    batches: set[FreshBatch], family: str, is_invariant: bool
) -> None:
    setting = Setting(family, budget=69)
    setting.config = replace(setting.config, device=DeviceConfig(batch_invariant=is_invariant))
    sequences = workload([5, 32, 32], [GREEDY])

    got = tokens_of(run(setting.core(setting.gpu_runner()), sequences))

    assert not batches
    assert got == tokens_of(run(setting.core(setting.cpu_runner()), sequences))
