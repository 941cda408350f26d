"""What a machine without the tools says: skipped with the reason, and a failure in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_the_reason_names_the_command(tmp_path: Path, ci: str, outcome: str) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CI": ci, "KUBECONFIG": ""}
    one = "tests/cluster/test_cluster.py::test_nodes_are_ready"

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome in done.stdout
    assert "run `make cluster-tools` once" in done.stdout
    assert (done.returncode == 0) is (ci == "")
