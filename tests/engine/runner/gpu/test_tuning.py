import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpu_runner_support import MODEL, Setting
from quire_engine.errors import ConfigError
from quire_engine.kernels.gpu.attention_tiles import Heads
from quire_engine.kernels.gpu.decode_attention_plan import DecodePlan
from quire_engine.runner.gpu import tune_decode, tune_linears
from quire_engine.runner.gpu.tuning import Batches, contexts_from, spec_of

CONTEXTS = {1: (256, 8192), 8: (640,)}
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="builds a runner on the CPU")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets the lengths of every step of single tokens."""
    found: list[list[int]] = []
    update = DecodePlan.update

    def note(plan: DecodePlan, seq_lens_B: torch.Tensor, rows_B: torch.Tensor) -> None:
        found.append(seq_lens_B.tolist())
        update(plan, seq_lens_B, rows_B)

    monkeypatch.setattr(DecodePlan, "update", note)
    return found


@INTERPRETED
def test_a_batch_can_be_decoded_again_and_again(lengths: list[list[int]]) -> None:
    runner = Setting().gpu_runner()
    batches = Batches(runner)

    for num_sequences, context in ((3, 100), (5, 33), (2, 120)):
        batches.put(num_sequences, context)
        logits_SV = runner.step.logits_SV[:num_sequences].clone()
        lengths.clear()
        for _ in range(2):
            runner.step.logits_SV.zero_()
            runner.step.decode(num_sequences)
            assert torch.allclose(runner.step.logits_SV[:num_sequences], logits_SV, atol=1e-4)
        assert lengths == [[context] * num_sequences] * 2


@INTERPRETED
def test_a_batch_that_the_cache_does_not_hold_is_refused() -> None:
    runner = Setting(num_blocks=20).gpu_runner()

    with pytest.raises(ConfigError, match=r"6 sequences of 100 tokens take 42 blocks.*has 20"):
        Batches(runner).put(6, 100)


@pytest.mark.parametrize(
    ("sizes", "context", "expected"),
    [
        ([1, 8], None, {1: (256, 8192), 8: (640,)}),
        ([4, 64], None, {4: (640,), 64: (640,)}),
        ([4], [100, 200], {4: [100, 200]}),
    ],
)
def test_a_size_is_timed_with_its_lengths_or_those_asked_for(
    sizes: list[int], context: list[int] | None, expected: dict[int, object]
) -> None:
    options = argparse.Namespace(sizes=sizes, context=context)

    assert contexts_from(options, CONTEXTS) == expected


def test_the_choice_is_for_the_heads_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))

    heads = tune_decode.heads_of(spec_of(tmp_path), torch.float8_e4m3fn)

    assert heads == Heads(num_heads=4, num_kv_heads=2, head_dim=16, kv_bytes=1)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        spec_of(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [tune_decode.main, tune_linears.main])
def test_without_a_gpu_tuning_says_so(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))

    assert main([str(tmp_path), "--table", str(tmp_path / "table.json")]) == 1
    assert "no CUDA device" in capsys.readouterr().err
