"""Programs that run to their end, and programs that run until they are stopped."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.errors import ClusterError, CommandError


def run_command(command: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a program to its end and return what it wrote to its standard output.

    Raises:
        CommandError: when its exit status is not 0.
    """
    done = subprocess.run(
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(command, done.returncode, done.stdout + done.stderr)
    return done.stdout


class Processes:
    """The running components by name, each with a log file of its own."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True)

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a component; its log is appended to."""
        assert name not in self._running, f"{name} runs already"
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def is_running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def check(self, name: str) -> None:
        """Raise ClusterError with the end of its log when a component has ended."""
        if not self.is_running(name):
            lines = self.log(name).read_text(errors="replace").splitlines()[-15:]
            raise ClusterError(f"{name} ended; its log closes with\n" + "\n".join(lines))

    def stop(self, name: str, *, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop a component and wait for its end."""
        process = self._running.pop(name)
        process.send_signal(with_signal)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_namespace(self, name: str) -> None:
        """Kill the first process of the PID namespace that `unshare` made, and all in it."""
        process = self._running.pop(name)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # The kernel ends the first process of a namespace only after all others are gone, and
        # unshare ends after it: whoever waits for unshare has seen the last of them.
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        if not children:
            process.kill()
        process.wait()
