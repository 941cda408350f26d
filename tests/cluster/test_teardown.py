"""A cluster is gone with its owner, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_cluster.cgroups import ROOT
from local_cluster.cluster import LocalCluster

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_owner_ends(
    local_cluster: LocalCluster, number: signal.Signals
) -> None:
    with _start_owner() as owner:
        folder = _folder(owner)
        assert len(_traces(folder)) > 10

        owner.send_signal(number)

    _wait_until_empty(lambda: _traces(folder))


def test_a_killed_daemon_leaves_files_only_and_the_next_start_removes_them(
    local_cluster: LocalCluster,
) -> None:
    with _start_owner() as owner:
        folder = _folder(owner)
        # unshare, whose child the daemon is, and the daemon itself.
        _, daemon = (pid for pid in _processes(folder) if "local_cluster.daemon" in _command(pid))
        os.kill(daemon, signal.SIGKILL)
        owner.kill()
    _wait_until_empty(lambda: _processes(folder))
    assert folder.exists()

    with _start_owner() as owner:
        _folder(owner)
        owner.send_signal(signal.SIGTERM)

    _wait_until_empty(lambda: _traces(folder))


@contextmanager
def _start_owner() -> Iterator["subprocess.Popen[str]"]:
    owner = subprocess.Popen(
        [sys.executable, "-m", "local_cluster", "up"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        try:
            yield owner
            owner.wait(180)
        finally:
            owner.kill()


def _folder(owner: "subprocess.Popen[str]") -> Path:
    assert owner.stdout is not None
    for line in owner.stdout:
        if "export KUBECONFIG=" in line:
            return Path(line.strip().partition("=")[2]).parent
    raise AssertionError("the cluster did not start")


def _wait_until_empty(list_left: Callable[[], Sequence[object]]) -> None:
    deadline = time.monotonic() + 120
    while left := list_left():
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.2)


def _traces(folder: Path) -> list[str]:
    """Name the cluster's files, cgroups and processes."""
    groups = [path for pattern in ("", "*/") for path in ROOT.glob(f"{pattern}{folder.name}")]
    files = [folder] if folder.exists() else []
    return [*map(str, groups + files), *map(str, _processes(folder))]


def _processes(folder: Path) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in numbers if str(folder) in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
