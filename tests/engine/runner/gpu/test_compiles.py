"""Which compiles are counted; `test_no_compiles_on_gpu.py` runs an engine to see that none are."""

import gc
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import triton

from gpu_runner_support import Setting, run, workload
from quire_engine.runner.gpu.compiles import CompileCounter
from quire_engine.sampling_params import SamplingParams


@pytest.fixture(autouse=True)
def hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Triton's hook back after each test."""
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", None)


def compile_kernel(name: str) -> Any:
    """Do what Triton's just-in-time compiler does when it is done."""
    return triton.knobs.runtime.jit_post_compile_hook(
        key="", repr="", fn=SimpleNamespace(name=name), is_manual_warmup=False
    )


def test_compiles_are_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    counter = CompileCounter()

    with caplog.at_level(logging.WARNING):
        compile_kernel("_gemv_kernel")
        compile_kernel("_pick_kernel")

    assert counter.names == ["_gemv_kernel", "_pick_kernel"]
    assert "kernel compiled after ready name=_pick_kernel num_compiles=2" in caplog.text


def test_a_hook_that_was_there_before_is_called_too() -> None:
    heard: list[str] = []

    def hook(*, fn: Any, **_: Any) -> str:
        heard.append(fn.name)
        return "its answer"

    triton.knobs.runtime.jit_post_compile_hook = hook
    counter = CompileCounter()

    assert compile_kernel("_norm_kernel") == "its answer"
    assert heard == counter.names == ["_norm_kernel"]


def test_an_engine_counts_from_when_it_is_ready_until_it_is_gone() -> None:
    first = CompileCounter()
    compile_kernel("one")
    second = CompileCounter()
    compile_kernel("two")
    del first
    gc.collect()
    compile_kernel("three")

    assert second.names == ["two", "three"]


def test_the_core_tells_of_compiles_with_the_step_that_waited_for_them() -> None:
    setting = Setting()
    runner = setting.gpu_runner()
    core = setting.core(runner)
    params = [SamplingParams(temperature=0.0, max_tokens=2)]
    run(core, workload([3], params))
    assert core.stats.num_compiles_after_ready == 0
    runner.compiles = CompileCounter()

    compile_kernel("_late_kernel")
    for sequence in workload([4, 5], params)[1:]:
        core.add(sequence)
    while core.has_work:
        core.step()

    assert core.stats.num_compiles_after_ready == 1
