"""What a supervisor prints: its own lines, and those of its children under their names."""

import json
import logging
import sys
from typing import Any, TextIO

from quire_engine.rpc.logs import JsonFormatter

_COLOURS = (36, 35, 33, 34, 32)  # cyan, magenta, yellow, blue, green
_ERASE_LINE = "\r\033[K"


class LineSplitter:
    """Cuts a child's output into lines, whatever pieces it arrives in.

    A progress bar redraws one line with carriage returns: each redrawing is a line that is not
    `final`, and only the last state of the line is.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        """Return the (text, final) lines that `data` brings."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [(_last_state(line), True) for line in whole]
        if b"\r" in self._rest:
            lines.append((_last_state(self._rest), False))
            self._rest = self._rest[self._rest.rindex(b"\r") :]
        return lines

    def finish(self) -> list[tuple[str, bool]]:
        """Return what is left when the child has closed its output."""
        rest, self._rest = self._rest, b""
        return [(_last_state(rest), True)] if rest else []


class Console:
    """Writes lines; names are coloured and progress bars move only on a terminal."""

    def __init__(self, out: TextIO = sys.stdout, *, is_terminal: bool | None = None) -> None:
        self._out = out
        self._is_terminal = out.isatty() if is_terminal is None else is_terminal
        self._has_progress = False

    def say(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self._write(text, final=True)

    def relay(self, name: str, text: str, *, final: bool) -> None:
        """Write a line of a child's."""
        if final or self._is_terminal:
            self._write(f"{self._prefix(name)} {text}", final=final)

    def _prefix(self, name: str) -> str:
        if not self._is_terminal:
            return f"{name} |"
        colour = _COLOURS[sum(name.encode()) % len(_COLOURS)]
        return f"\033[{colour}m{name} |\033[0m"

    def _write(self, text: str, *, final: bool) -> None:
        erase = _ERASE_LINE if self._has_progress else ""
        self._has_progress = not final
        self._out.write(f"{erase}{text}\n" if final else f"{erase}{text}")
        self._out.flush()


class JsonConsole(Console):
    """Writes JSON objects alone, with `process` saying whose line it is."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        super().__init__(out, is_terminal=False)
        self._formatter = JsonFormatter()

    def say(self, text: str) -> None:
        self._write(self._line("serve", text), final=True)

    def relay(self, name: str, text: str, *, final: bool) -> None:
        if final:
            self._write(self._line(name, text), final=True)

    def _line(self, name: str, text: str) -> str:
        entry = _json_object(text)
        if entry is None:  # not from a log of ours
            record = logging.LogRecord("quire.serve", logging.INFO, "", 0, text, None, None)
            entry = json.loads(self._formatter.format(record))
        return json.dumps({**entry, "process": name})


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _last_state(line: bytes) -> str:
    states = [state for state in line.split(b"\r") if state.strip()]
    return states[-1].decode(errors="replace") if states else ""
