"""What travels between the first rank and a worker, over pipes that only the two of them hold.

To a worker: its WorkerSpec, then a StepPlan for each step; pickled, with the length in front. They
come from the process that started it, as code does. From a worker: a line of JSON for each Report.
"""

import importlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from quire_engine.runner.group.rank import Rank
from quire_engine.runner.plan import ModelRunner

LENGTH_BYTES = 8
HOST = "127.0.0.1"
TIMEOUT = timedelta(minutes=10)
"""For ranks to meet; compiling kernels for the first time may come in between."""
LOADED = "loaded"
"""The stage of a rank that has its weights; what comes now no rank can do without the others."""
READY = "ready"
"""The stage of a rank whose runner is built."""

Build = Callable[[Any, Rank], ModelRunner]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs to build its runner."""

    build: str
    """"module:function", called as `function(argument, rank)`; returns a ModelRunner."""
    argument: Any
    rank: int
    size: int
    store_port: int
    report_fd: int
    log_level: int
    log_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker says of its start."""

    stage: str = ""
    """It got so far."""
    failure: str = ""
    """It could not start, because of this."""
    is_config: bool = False
    """The configuration is at fault: ConfigError, not a crash."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Report":
        return cls(**json.loads(line))


def load_function(path: str) -> Build:
    """Import "module:function"."""
    module, _, name = path.partition(":")
    function: Build = getattr(importlib.import_module(module), name)
    return function


def frame(message: Any) -> bytes:
    """Return a message as it travels to workers."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe, however little fits at a time.

    Raises:
        OSError: nobody reads it.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_frame(fd: int) -> Any:
    """Wait for the next message.

    Raises:
        EOFError: there will be none, since the writer is gone.
    """
    length = int.from_bytes(_read(fd, LENGTH_BYTES), "little")
    return pickle.loads(_read(fd, length))


def _read(fd: int, num_bytes: int) -> bytearray:
    data = bytearray()
    while len(data) < num_bytes:
        chunk = os.read(fd, num_bytes - len(data))
        if not chunk:
            raise EOFError("the first rank is gone")
        data += chunk
    return data
