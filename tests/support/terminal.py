"""A program on a terminal of its own, and what it shows there."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEADLINE_S = 60.0
HOME = "\x1b[H"
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
SHOW_CURSOR = "\x1b[?25h"
# Not done between a fork and its exec: this process may have threads, those of gRPC say.
TAKE_CONTROL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """The user's side of a pseudo terminal."""

    def __init__(self, process: subprocess.Popen[bytes], user: int, program: int) -> None:
        self.process = process
        self._user = user
        self._program = program
        self.written = ""
        os.set_blocking(user, False)

    @property
    def lines(self) -> list[str]:
        """What was drawn last on a whole screen, without colours."""
        frame = self.written.rpartition(HOME)[2]
        return [line.rstrip() for line in _CODES.sub("", frame).replace("\r", "").split("\n")]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def settings(self) -> list[Any]:
        """How the terminal treats lines and keys."""
        return termios.tcgetattr(self._program)

    def press(self, keys: str) -> None:
        os.write(self._user, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        _set_size(self._user, columns, rows)

    async def until_shown(self, text: str, *, is_shown: bool = True) -> None:
        """Wait until a text is on the screen, or is not any more."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while (text in self._read()) is not is_shown:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"still waiting for {text!r} on\n{self.text}") from None

    async def ended(self) -> int:
        """Wait for the end of the program; return its status."""
        async with asyncio.timeout(DEADLINE_S):
            while self.process.poll() is None:
                self._read()
                await asyncio.sleep(0.02)
        self._read()
        return self.process.returncode

    def _read(self) -> str:
        try:
            while data := os.read(self._user, 65536):
                self.written += data.decode(errors="replace")
        except BlockingIOError:
            pass
        return self.text


@contextmanager
def on_terminal(
    *command: str, columns: int = 100, rows: int = 30, environment: dict[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a command with a terminal that controls it, so that Ctrl-C is a signal."""
    user, program = pty.openpty()
    _set_size(program, columns, rows)
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_CONTROL, *command],
        stdin=program,
        stdout=program,
        stderr=program,
        start_new_session=True,
        env=_environment() | (environment or {}),
    )
    try:
        yield Terminal(process, user, program)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(user)
        os.close(program)


def on_quire_terminal(*arguments: str, columns: int = 100, rows: int = 30) -> Any:
    """Run a `quire` command so."""
    return on_terminal(sys.executable, "-m", "quire.cli", *arguments, columns=columns, rows=rows)


def _environment() -> dict[str, str]:
    """Return a shell's environment: without the size of a terminal, which readline exports."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}


def _set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
