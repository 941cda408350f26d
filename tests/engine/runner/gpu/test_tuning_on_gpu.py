"""A tuner runs whole steps of a small model and writes a table that serving can read."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quire_engine.kernels.gpu.attention_tiles import AttentionTable, shipped_attention_table
from quire_engine.kernels.gpu.tables import TileTable, shipped_table
from quire_engine.runner.gpu import tune_decode, tune_linears
from quire_engine.runner.gpu.tuning import spec_of
from random_models import QWEN3_06B

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Let other tests read the tables anew: tuners change them in place."""
    yield
    shipped_attention_table.cache_clear()
    shipped_table.cache_clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_06B | {"num_hidden_layers": 4}))
    return tmp_path


def test_attention_is_tuned_for_a_batch_size(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "attention.json"

    status = tune_decode.main(
        [str(model), "--table", str(table), "--sizes", "4", "--context", "300", "--seconds", "90"]
    )

    assert status == 0
    heads = tune_decode.heads_of(spec_of(model), torch.bfloat16)
    tiles = AttentionTable.parse(table.read_text()).decode(heads, 4)
    assert str(tiles) in capsys.readouterr().out


def test_linears_are_tuned_for_a_number_of_rows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "linears.json"

    status = tune_linears.main(
        [str(model), "--table", str(table), "--sizes", "8", "--limit", "2", "--seconds", "90"]
    )

    assert status == 0
    assert len(list(TileTable.parse(table.read_text()).entries())) > 0
    assert "gate_up x 8: step" in capsys.readouterr().out
