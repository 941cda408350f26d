"""Being told to stop before there is anything to stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

SIGTERM_BIT = 1 << (signal.SIGTERM - 1)


def handles_sigterm(pid: int) -> bool:
    """Tell whether a process has a handler, without which a container's first hears nothing."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & SIGTERM_BIT)


def test_it_ends_at_once_when_it_is_stopped_while_it_loads() -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "quire_operator", "--no-leader-election"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not handles_sigterm(process.pid):
        time.sleep(0.001)
    process.terminate()
    _, loaded = process.communicate(timeout=120)

    assert process.returncode == 0
    assert "quire_operator" in loaded
    assert "kopf" not in loaded
