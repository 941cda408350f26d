import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire_engine.kernels.gpu.attention_tiles import HOPPER_SHARED_BYTES

TESTS = Path(__file__).parents[3]
IMPORT_ROOTS = (TESTS.parent / "engine", TESTS / "support")


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, IMPORT_ROOTS))
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    command = [sys.executable, str(TESTS / "support" / "attention_launches.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    launches: list[dict[str, Any]] = json.loads(result.stdout)
    return launches


def named(compiled: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [launch for launch in compiled if launch["name"] == name]


@pytest.mark.timeout(300)
def test_attention_compiles_for_hopper_with_hardly_a_spill(compiled: list[dict[str, Any]]) -> None:
    assert len(compiled) == 6
    # Tiles that were measured as the fastest may spill a register or two outside of their loop.
    assert all(launch["spilled_bytes"] <= 128 for launch in compiled)
    assert all(launch["shared_bytes"] <= HOPPER_SHARED_BYTES for launch in compiled)


@pytest.mark.timeout(300)
def test_prefill_uses_the_matrix_units_of_a_warpgroup(compiled: list[dict[str, Any]]) -> None:
    for launch in named(compiled, "_prefill_kernel"):
        assert "wgmma.mma_async" in launch["ptx"]


@pytest.mark.timeout(300)
def test_decode_copies_keys_sixteen_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    bfloat16_cache, _ = named(compiled, "_decode_kernel")

    assert "cp.async.cg.shared.global" in bfloat16_cache["ptx"]
