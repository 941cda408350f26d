import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[3]
IMPORT_ROOTS = (TESTS.parent / "engine", TESTS / "support")
SHARED_BYTES = 232_448

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, IMPORT_ROOTS))
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    command = [sys.executable, str(TESTS / "support" / "linear_launches.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    launches: list[dict[str, Any]] = json.loads(result.stdout)
    return launches


def named(compiled: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [launch for launch in compiled if launch["name"] == name]


def test_linears_compile_for_hopper_without_spilling(compiled: list[dict[str, Any]]) -> None:
    assert [launch["name"] for launch in compiled] == [
        *["_gemv_kernel"] * 5,
        "_rotated_gemv_kernel",
        "_rotated_gemv_kernel",
        "_skinny_kernel",
        "_skinny_kernel",
        "_quantize_rows_kernel",
        "_skinny_kernel",
    ]
    assert [launch["spilled_bytes"] for launch in compiled] == [0] * 11
    assert all(launch["shared_bytes"] <= SHARED_BYTES for launch in compiled)


def test_weights_come_sixteen_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    for launch in named(compiled, "_gemv_kernel") + named(compiled, "_rotated_gemv_kernel"):
        assert re.search(r"ld.global.L1::evict_first[^;]*v4.b32", launch["ptx"])
    for launch in named(compiled, "_skinny_kernel"):
        assert "cp.async.cg.shared.global" in launch["ptx"]


def test_only_tiles_that_ask_for_it_fetch_weights_ahead(compiled: list[dict[str, Any]]) -> None:
    plain, fetching, *_ = (launch["ptx"] for launch in named(compiled, "_gemv_kernel"))

    assert "prefetch.global.L2" in fetching
    assert "prefetch" not in plain


def test_sixty_four_rows_use_the_matrix_units_of_a_warpgroup(
    compiled: list[dict[str, Any]],
) -> None:
    few, many, blocks = named(compiled, "_skinny_kernel")

    assert "mma.sync" in few["ptx"]
    assert "wgmma.mma_async" in many["ptx"]
    assert "wgmma.mma_async" in blocks["ptx"]


def test_only_tiles_that_ask_for_it_go_to_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    *plain, wide, narrow = (launch["ptx"] for launch in named(compiled, "_gemv_kernel"))

    assert "mma.sync" not in "".join(plain)
    assert "f32.bf16.bf16.f32" in wide
    assert "cvt.rn.f16x2.e4m3x2" in narrow
    assert "f32.f16.f16.f32" in narrow
