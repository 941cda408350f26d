"""The operator as a process of its own, as a pod runs it."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OperatorProcess:
    """One replica."""

    def __init__(self, kubeconfig: Path, *flags: str) -> None:
        self._metrics = f"127.0.0.1:{_free_port()}"
        self._health = f"127.0.0.1:{_free_port()}"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "quire_operator", f"--kubeconfig={kubeconfig}"),
                *(f"--metrics-address={self._metrics}", f"--health-address={self._health}"),
                *flags,
            ]
        )

    @property
    def metrics_address(self) -> str:
        """Where Prometheus scrapes it."""
        return self._metrics

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels, as written."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics") as answer:
            text = answer.read().decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^([^# ].*) (\S+)$", text, re.MULTILINE)
        }

    def writes(self) -> Counter[tuple[str, str]]:
        """Return the number of writes by (verb, kind)."""
        found = Counter[tuple[str, str]]()
        for name, value in self.metrics().items():
            if match := re.match(r'quire_operator_writes_total{kind="(\w+)",verb="(\w+)"}', name):
                found[match[2], match[1]] = int(value)
        return found

    def is_leading(self) -> bool:
        return self.metrics()["quire_operator_leader"] == 1.0

    def health(self, path: str = "healthz") -> tuple[int, str]:
        """Return the status and text of a probe; status 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://{self._health}/{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self, limit_s: float = 300.0) -> None:
        deadline = time.monotonic() + limit_s
        while self.health("readyz")[0] != 200:
            assert self._process.poll() is None, "the operator ended"
            assert time.monotonic() < deadline, f"not ready: {self.health('readyz')}"
            time.sleep(0.2)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self._process.terminate()
        return self._process.wait(120)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(60)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


@contextmanager
def operator_process(kubeconfig: Path, *flags: str) -> Iterator[OperatorProcess]:
    """Run an operator until the end of the block, ready to work at its beginning."""
    process = OperatorProcess(kubeconfig, *flags)
    try:
        process.wait_ready()
        yield process
        if process.is_running:
            assert process.stop() == 0
    finally:
        process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
