from collections.abc import Callable

import pytest
import torch

from quire_engine.kernels.gpu.attention_tiles import (
    PREFILL_CANDIDATES,
    Heads,
    default_prefill_tiles,
)
from quire_engine.kernels.gpu.attention_workloads import Sequences, Workload
from quire_engine.kernels.gpu.tune_prefill import Tuner, main

HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=16, kv_bytes=2)
SHORT = (Sequences(query_lens=(20,), seq_lens=(50,)),)


def make_workload(sequences: Sequences) -> Workload:
    return Workload(
        sequences,
        HEADS,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        kv_dtype=torch.float16,
        num_processors=4,
        cache_bytes=1,
    )


class CountingTimer:
    """Every run but one takes a second."""

    def __init__(self, fast_run: int) -> None:
        self._fast_run, self._num_runs = fast_run, 0

    def __call__(self, run: Callable[[], None]) -> float:
        run()
        self._num_runs += 1
        return 0.5 if self._num_runs == self._fast_run else 1.0


def test_the_fastest_tiles_win() -> None:
    said: list[str] = []
    tuner = Tuner(HEADS, make_workload, CountingTimer(fast_run=4), said.append)

    assert tuner.tune(SHORT) == PREFILL_CANDIDATES[2]
    assert "500000.0 us" in said[0]


def test_tiles_that_compute_something_else_never_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "relative_error", lambda self: float("nan"))
    said: list[str] = []

    best = Tuner(HEADS, make_workload, CountingTimer(3), said.append).tune(SHORT)

    assert best == default_prefill_tiles(HEADS)
    assert "WRONG" in said[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tuning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
