"""The core process: `python -m quire_engine.core.process`, started by `frontend/core_client.py`.

It reads a CoreSpec from standard input, builds its runner, then turns commands into steps. With
work it looks for commands between steps and never waits; without, it waits for one and says now
and then that it is alive.

Standard input stays open as long as the parent lives. Its end, however it comes, ends this process.
"""

import gc
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import msgspec
import zmq

from quire_engine.config import EngineConfig
from quire_engine.core.engine_core import EngineCore, refusal
from quire_engine.core.messages import SequenceOutput, StepOutputs
from quire_engine.core.wire import (
    HEARTBEAT_S,
    STOP_SIGNAL,
    AbortSequences,
    AddSequences,
    Codec,
    CoreSpec,
    Heartbeat,
    PrefixCacheReset,
    ResetPrefixCache,
    StartFailure,
)
from quire_engine.errors import ConfigError, RequestError
from quire_engine.rpc.logs import configure_logging
from quire_engine.runner.plan import ModelRunner

logger = logging.getLogger(__name__)

LAST_WORDS_MS = 1000
"""How long the last messages may take to leave when the process ends."""
STDIN = 0


class Link:
    """The core's end of the two sockets."""

    def __init__(self, spec: CoreSpec) -> None:
        self._codec = Codec()
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.PULL)
        self._events = self._context.socket(zmq.PUSH)
        for endpoint in (self._commands, self._events):
            endpoint.set_hwm(0)
            endpoint.linger = LAST_WORDS_MS
        self._commands.connect(spec.commands_address)
        self._events.connect(spec.events_address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._commands.close()
        self._events.close()
        self._context.term()

    def send(self, message: Any) -> None:
        self._events.send_multipart(self._codec.pack(message))

    def receive(self, wait_s: float) -> Any:
        """Return the next command, or None if there is none within `wait_s`."""
        if wait_s and not self._commands.poll(int(wait_s * 1000)):
            return None
        try:
            return self._codec.unpack(self._commands.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return None


class CoreLoop:
    """Takes commands and steps, for ever."""

    def __init__(self, core: EngineCore, link: Link) -> None:
        self._core = core
        self._link = link
        self._is_checked = True
        self._num_commands = 0
        self.num_failed_checks = 0

    def run(self) -> None:
        while True:
            self.turn()

    def turn(self) -> None:
        """Take what commands there are, then step or, with nothing to do, wait a little."""
        command = self._link.receive(0.0 if self._core.has_work else HEARTBEAT_S)
        if command is None and not self._core.has_work:
            self._idle()
        while command is not None:
            self._obey(command)
            command = self._link.receive(0.0)
        if self._core.has_work:
            self._is_checked = False
            self._link.send(self._core.step())

    def _idle(self) -> None:
        self._core.check_alive()
        self._link.send(Heartbeat(num_commands=self._num_commands))
        if self._is_checked:
            return
        self._is_checked = True
        try:
            self._core.check()
        except AssertionError:  # a bug, but what is served may still be right
            self.num_failed_checks += 1
            logger.exception("invariant broken num_failed_checks=%d", self.num_failed_checks)

    def _obey(self, command: Any) -> None:
        self._num_commands += 1
        match command:
            case AddSequences():
                self._add(command)
            case AbortSequences():
                self._core.abort(command.seq_ids)
                if not self._core.has_work:  # no step follows that would tell what is free
                    self._link.send(StepOutputs(stats=self._core.stats))
            case ResetPrefixCache():
                self._core.reset_prefix_cache()
                self._link.send(PrefixCacheReset(ticket=command.ticket))

    def _add(self, command: AddSequences) -> None:
        refusals: list[SequenceOutput] = []
        for sequence in command.sequences:
            try:
                self._core.add(sequence)
            except RequestError as error:
                refusals.append(refusal(sequence.seq_id, error))
        if refusals:
            self._link.send(StepOutputs(outputs=refusals, stats=self._core.stats))


def main() -> int:
    """Serve until the parent says or shows that it is over."""
    # Ctrl-C and service managers signal the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(STOP_SIGNAL, _exit)
    spec = _read_spec()
    threading.Thread(
        target=_outlive_no_parent, args=(spec,), name="parent-watcher", daemon=True
    ).start()
    configure_logging(logging.getLevelName(spec.log_level), spec.log_format)
    with Link(spec) as link:
        core = _build(spec, link)
        if core is None:
            return 1
        # What was loaded stays: collecting garbage need not look at it again.
        gc.collect()
        gc.freeze()
        link.send(core.describe())
        CoreLoop(core, link).run()
    return 0


def _read_spec() -> CoreSpec:
    length = int.from_bytes(_read_stdin(4), "little")
    return msgspec.msgpack.decode(_read_stdin(length), type=CoreSpec)


def _read_stdin(num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        chunk = os.read(STDIN, num_bytes - len(data))
        if not chunk:
            raise EOFError("the parent ended before it said what to run")
        data += chunk
    return data


def _build(spec: CoreSpec, link: Link) -> EngineCore | None:
    try:
        runner = _load_factory(spec.runner_factory)(spec.config)
        return EngineCore(
            spec.config,
            runner,
            prefix_model=spec.prefix_model,
            eos_token_ids=frozenset(spec.eos_token_ids),
        )
    except ConfigError as error:
        link.send(StartFailure(message=str(error), is_config=True))
    except Exception as error:  # whatever it is, the parent must hear of it
        logger.exception("start failed")
        message = f"the core could not start: {type(error).__name__}: {error}"
        link.send(StartFailure(message=message, is_config=False))
    return None


def _load_factory(path: str) -> Callable[[EngineConfig], ModelRunner]:
    module, _, name = path.partition(":")
    factory: Callable[[EngineConfig], ModelRunner] = getattr(importlib.import_module(module), name)
    return factory


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _outlive_no_parent(spec: CoreSpec) -> None:
    while os.read(STDIN, 1):
        pass
    # A parent that was killed could not clear its sockets away.
    sockets = Path(spec.commands_address.removeprefix("ipc://")).parent
    shutil.rmtree(sockets, ignore_errors=True)
    os._exit(1)  # a hung step would not notice anything gentler


if __name__ == "__main__":
    sys.exit(main())
