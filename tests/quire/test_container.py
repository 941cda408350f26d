"""The command as the first process of a container: the kernel treats its signals differently."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_process import wait_until

ROOT = Path(__file__).parents[2]
AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)
WAIT_S = 90.0


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*AS_FIRST, "true"], check=False, capture_output=True).returncode == 0


def first_of(outer: int) -> int:
    """Return the first process of the namespace, once it has a handler of SIGTERM; 0 before."""
    for child in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
        status = Path(f"/proc/{child}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) & SIGTERM_BIT:
            return int(child)
    return 0


@pytest.mark.skipif(not may_unshare(), reason="needs root and unshare, for a PID namespace")
@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_a_stop_that_comes_before_it_is_up_is_heard(delay_s: float, tmp_path: Path) -> None:
    command = [*AS_FIRST, sys.executable, "-m", "quire.cli", "engine"]
    command += ["--uds", str(tmp_path / "engine.sock"), "--metrics-port", "-1"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/engine"}
    outer = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: first_of(outer.pid) > 0, timeout_s=WAIT_S, what="a handler of SIGTERM")
        first = first_of(outer.pid)
        assert "torch" not in Path(f"/proc/{first}/maps").read_text()
        time.sleep(delay_s)

        os.kill(first, signal.SIGTERM)

        assert outer.wait(timeout=WAIT_S) == 0
    finally:
        outer.kill()
        outer.wait()
