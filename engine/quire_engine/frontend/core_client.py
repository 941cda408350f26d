"""The frontend's end of a core process: start it, talk to it, notice when it dies.

    client = await CoreClient.start(config, prefix_model=name, eos_token_ids=ids)
    client.send(sequence)
    async for step in client.outputs(): ...
    await client.close()

The core's standard input is a pipe that only this process holds: it carries the CoreSpec, and its
end tells the core that its parent is gone, however that happened.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

from quire_engine.config import EngineConfig
from quire_engine.core.messages import CoreReady, NewSequence, StepOutputs
from quire_engine.core.wire import (
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
from quire_engine.errors import ConfigError, EngineDeadError

logger = logging.getLogger(__name__)

RUNNER_FACTORY = "quire_engine.runner.factory:build_runner"
LAST_WORDS_S = 0.3
"""How long after its death the words of a core that could not start may take to arrive."""
MAX_SOCKET_PATH = 80
"""Unix socket paths end at 107 characters; the file's own name needs some of them."""


class CoreClient:
    """A running core process. Belongs to the event loop that started it; not thread-safe."""

    def __init__(self, process: subprocess.Popen[bytes], sockets: "_Sockets") -> None:
        self._process = process
        self._sockets = sockets
        self._codec = Codec()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[CoreReady] = self._loop.create_future()
        self._outputs: asyncio.Queue[StepOutputs | None] = asyncio.Queue()
        self._tickets = itertools.count()
        self._resets: dict[int, asyncio.Future[None]] = {}
        self._error: EngineDeadError | None = None
        self._is_closing = False
        self._num_commands = 0
        self._is_stepping = False
        self._heard_at = time.monotonic()
        self._reader = self._loop.create_task(self._read())
        self._reader.add_done_callback(self._on_reader_done)
        # A thread that waits is the portable way to learn of a death at once.
        self._watcher = threading.Thread(target=self._watch, name="core-watcher", daemon=True)
        self._watcher.start()

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        prefix_model: str,
        eos_token_ids: Collection[int],
        runner_factory: str = RUNNER_FACTORY,
        log_level: int = logging.INFO,
        log_format: str = "text",
    ) -> Self:
        """Spawn a core process and return once it can serve; `ready` says what it became.

        `prefix_model` salts block hashes (`rpc/prefix.py`). Cancelling stops the process.

        Raises:
            ConfigError: the core refused its configuration; the message is its own.
            EngineDeadError: the core failed or died in any other way.
        """
        sockets = _Sockets()
        spec = CoreSpec(
            config=config,
            prefix_model=prefix_model,
            eos_token_ids=sorted(eos_token_ids),
            runner_factory=runner_factory,
            commands_address=sockets.commands_address,
            events_address=sockets.events_address,
            log_level=log_level,
            log_format=log_format,
        )
        client = cls(_spawn(spec), sockets)
        try:
            await asyncio.shield(client._ready)
        except BaseException:
            await client.close(timeout_s=0.0)
            raise
        return client

    @property
    def ready(self) -> CoreReady:
        return self._ready.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def error(self) -> EngineDeadError | None:
        """Why the core is dead; None while it lives."""
        return self._error

    @property
    def last_progress_s(self) -> float:
        """Seconds since the core last finished a step or, idle, said that it is alive."""
        return time.monotonic() - self._heard_at

    @property
    def is_stepping(self) -> bool:
        """Whether the core may have work, so that silence means a long step or a hung one.

        True from `send` until a heartbeat says that all commands were obeyed and nothing is left
        to do. An idle core is never silent for longer than HEARTBEAT_S either.
        """
        return self._is_stepping

    def send(self, *sequences: NewSequence) -> None:
        """Begin to generate. A refusal comes back as an output with FinishReason.ERROR.

        Raises:
            EngineDeadError: the core is gone.
        """
        self._is_stepping = True
        self._send(AddSequences(sequences=list(sequences)))

    def abort(self, seq_ids: Sequence[int]) -> None:
        """Stop generating these and free their blocks. Nothing more is said of them.

        Outputs already on their way still arrive. Unknown ids, and a dead core, are ignored.
        """
        # Also a core that is gone without this being known yet.
        with contextlib.suppress(EngineDeadError):
            self._send(AbortSequences(seq_ids=list(seq_ids)))

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no live sequence uses; return once that is done.

        Raises:
            EngineDeadError: the core is gone.
        """
        ticket = next(self._tickets)
        done = self._resets[ticket] = self._loop.create_future()
        try:
            self._send(ResetPrefixCache(ticket=ticket))
            await done
        finally:
            self._resets.pop(ticket, None)

    async def outputs(self) -> AsyncIterator[StepOutputs]:
        """Yield what each step produced, until `close`. For one consumer.

        Raises:
            EngineDeadError: the core died.
        """
        while (step := await self._outputs.get()) is not None:
            yield step
        self._outputs.put_nowait(None)
        if self._error is not None and not self._is_closing:
            raise self._error

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """End the core, by force after `timeout_s`. May be called twice."""
        self._is_closing = True
        self._signal(STOP_SIGNAL)
        if not await self._wait(timeout_s):
            logger.warning("core killed pid=%d after_s=%g", self.pid, timeout_s)
            self._signal(signal.SIGKILL)
            await self._wait(None)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._finish(EngineDeadError("the core process was stopped"))
        self._sockets.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _wait(self, timeout_s: float | None) -> bool:
        await asyncio.to_thread(self._watcher.join, timeout_s)
        return not self._watcher.is_alive()

    def _send(self, message: Any) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._sockets.commands.send_multipart(self._codec.pack(message), zmq.NOBLOCK)
        except zmq.Again:
            raise EngineDeadError("the core process does not listen any more") from None
        self._num_commands += 1

    async def _read(self) -> None:
        while True:
            frames = await self._sockets.events.recv_multipart()
            self._heard_at = time.monotonic()
            self._handle(self._codec.unpack(frames))

    def _handle(self, message: Any) -> None:
        match message:
            case StepOutputs():
                self._outputs.put_nowait(message)
            case Heartbeat():
                self._is_stepping = message.num_commands < self._num_commands
            case PrefixCacheReset():
                if (done := self._resets.get(message.ticket)) is not None and not done.done():
                    done.set_result(None)
            case CoreReady():
                self._ready.set_result(message)
            case StartFailure():
                error = ConfigError if message.is_config else EngineDeadError
                self._ready.set_exception(error(message.message))

    def _on_reader_done(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled() and (error := reader.exception()) is not None:
            logger.error("core not understood", exc_info=error)
            self._finish(EngineDeadError(f"the core process is not understood: {error}"))

    def _watch(self) -> None:
        self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._on_death)
        except RuntimeError:  # the loop is closed, so nobody is left to tell
            logger.debug("core ended after its event loop pid=%d", self.pid)

    def _on_death(self) -> None:
        error = EngineDeadError(f"the core process {_describe_exit(self._process.returncode)}")
        if self._is_closing:
            return
        if self._ready.done():
            self._finish(error)
        else:
            self._loop.call_later(LAST_WORDS_S, self._finish, error)

    def _finish(self, error: EngineDeadError) -> None:
        """Tell everyone who waits; the first error stays."""
        if self._error is not None:
            return
        self._error = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # seen, also when nobody waits any more
        for done in self._resets.values():
            if not done.done():
                done.set_exception(error)
        self._outputs.put_nowait(None)


class _Sockets:
    """Both sockets, in a directory that only this user can enter."""

    def __init__(self) -> None:
        self._folder = _private_folder()
        self.commands_address = f"ipc://{self._folder / 'commands'}"
        self.events_address = f"ipc://{self._folder / 'events'}"
        self._context = zmq.Context()
        self._async_context = zmq.asyncio.Context(self._context)
        self.commands = self._context.socket(zmq.PUSH)
        self.events = self._async_context.socket(zmq.PULL)
        for endpoint in (self.commands, self.events):
            # Unlimited: what bounds the queue is max_num_queued_reqs, not a socket.
            endpoint.set_hwm(0)
            endpoint.linger = 0
        self.commands.bind(self.commands_address)
        self.events.bind(self.events_address)

    def close(self) -> None:
        self.commands.close()
        self.events.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    folder = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix="quire-", dir=folder if len(folder) < MAX_SOCKET_PATH else "/tmp")
    )


def _spawn(spec: CoreSpec) -> subprocess.Popen[bytes]:
    # The child must find what this process finds, wherever its imports come from.
    paths = [path or str(Path.cwd()) for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", "quire_engine.core.process"],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdin is not None, "stdin is a pipe"
    body = msgspec.msgpack.encode(spec)
    process.stdin.write(len(body).to_bytes(4, "little") + body)
    process.stdin.flush()
    return process


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
