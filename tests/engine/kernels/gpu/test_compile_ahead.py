import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[3]
IMPORT_ROOTS = (TESTS.parent / "engine", TESTS / "support")


@pytest.mark.timeout(200)
def test_what_was_compiled_ahead_is_not_compiled_again(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join(map(str, IMPORT_ROOTS)),
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, str(TESTS / "support" / "compile_ahead_launches.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr

    assert json.loads(result.stdout) == {
        "num_kernels": 3,
        "compiled_ahead": 3,
        "loaded_ahead": 3,
        "compiled_later": 0,
        "launched": 7,
        "kept_of_repeated": 0,
    }
