from collections.abc import Callable

import pytest
import torch

from quire_engine.kernels.gpu import tune_attention as tuning
from quire_engine.kernels.gpu.attention_tiles import (
    Heads,
    default_decode_tiles,
    shipped_attention_table,
)
from quire_engine.kernels.gpu.attention_workloads import Sequences, Workload
from quire_engine.kernels.gpu.tune_attention import Tuner, decode_candidates, main, tune

HEADS = Heads(num_heads=4, num_kv_heads=2, head_dim=16, kv_bytes=2)


@pytest.fixture
def short_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "DECODE_WORKLOADS", {1: ((40,),), 8: ((9, 40),)})
    monkeypatch.setattr(tuning, "PREFILL_WORKLOADS", (Sequences(query_lens=(20,), seq_lens=(50,)),))


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

    best = tuner.decode(8, [(9, 40)])

    default = default_decode_tiles(HEADS, 2)
    assert best == list(decode_candidates(default))[2]
    assert "500000.0 us" in said[0]


def test_tiles_that_compute_something_else_never_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "relative_error", lambda self: float("nan"))
    said: list[str] = []

    best = Tuner(HEADS, make_workload, CountingTimer(2), said.append).decode(8, [(9, 40)])

    assert best == default_decode_tiles(HEADS, 2)
    assert "WRONG" in said[0]


@pytest.mark.usefixtures("short_workloads")
def test_a_tuned_table_has_every_batch_size() -> None:
    tuner = Tuner(HEADS, make_workload, CountingTimer(1), lambda line: None, stop_at=0.0)

    shipped, tuned = shipped_attention_table().dump(), tune(HEADS, tuner).dump()

    assert tuned.count('"max_batch"') == shipped.count('"max_batch"') + 2
    assert tuned.count('"block_m"') == shipped.count('"block_m"') + 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tuning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
