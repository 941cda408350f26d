"""`quire serve` as a user starts it: real processes over real sockets."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running `quire serve`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def api_url(self) -> str:
        return f"{self.url}/v1"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        """Sum of a metric's samples over all labels; 0 when there is none."""
        lines = [line for line in self.get("/metrics").splitlines() if not line.startswith("#")]
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)

    def stop(self) -> int:
        """End it as Ctrl-C in a terminal does: SIGINT to the whole process group."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after Ctrl-C:\n{self.log.read_text()}") from None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll `condition` until it holds.

    Raises:
        AssertionError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def start_serve(log: Path, *flags: str) -> Served:
    port = free_port()
    command = [sys.executable, "-m", "quire.cli", "serve", "--port", str(port), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    served = Served(process=process, url=f"http://127.0.0.1:{port}", log=log)

    def ready() -> bool:
        assert process.poll() is None, f"quire serve ended:\n{log.read_text()}"
        return is_up(served.url + "/ready")

    try:
        wait_until(ready, timeout_s=READY_TIMEOUT_S, what="quire serve ready")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return served
