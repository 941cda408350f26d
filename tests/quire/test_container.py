"""The command as the first process of a container: the kernel treats its signals differently."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*AS_FIRST, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="needs root and unshare, for a PID namespace")
@pytest.mark.parametrize("delay_s", [0.2, 1.0])
def test_a_stop_that_comes_before_it_is_up_is_heard(delay_s: float, tmp_path: Path) -> None:
    command = [*AS_FIRST, sys.executable, "-m", "quire.cli", "engine"]
    command += ["--uds", str(tmp_path / "engine.sock"), "--metrics-port", "-1"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/engine"}
    outer = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        time.sleep(delay_s)
        (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()

        os.kill(int(first), signal.SIGTERM)

        assert outer.wait(timeout=45) == 0
    finally:
        outer.kill()
        outer.wait()
