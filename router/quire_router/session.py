"""One stream to a replica that carries all of this router's requests there.

A stream per request would cost the router three times and the engine ten times the CPU per token.
Requests are named by a number on the stream, and every message of the engine brings what one step
computed for all of them: one callback per item, no task.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from quire_engine.rpc import engine_pb2 as pb

MAX_ALIAS = 2**32 - 1


class ConnectionLostError(Exception):
    """The replica cannot be reached any more."""


class Sink(Protocol):
    """Who takes what comes for one request. Nothing comes after an end."""

    def on_response(self, response: pb.GenerateResponse) -> None:
        """Take what is new; with `usage` it is the end."""
        ...

    def on_error(self, error: pb.Error) -> None:
        """The engine failed or refused the request; the end."""
        ...

    def on_lost(self, reason: str) -> None:
        """The stream broke with the request on it; the end."""
        ...


class Session:
    """The requests on one stream."""

    def __init__(self, on_load: Callable[[pb.Load], None]) -> None:
        self._on_load = on_load
        self._sinks: dict[int, Sink] = {}
        self._outbox: deque[pb.SessionRequest] = deque()
        self._wakeup = asyncio.Event()
        self._last_alias = 0

    def __len__(self) -> int:
        """Return how many requests are in flight."""
        return len(self._sinks)

    @property
    def sinks(self) -> list[Sink]:
        """Who waits for something now."""
        return list(self._sinks.values())

    def add(self, request: pb.GenerateRequest, sink: Sink) -> int:
        """Send a request; return the alias to abort it by."""
        alias = self._next_alias()
        self._sinks[alias] = sink
        self._send(pb.SessionRequest(add=pb.SessionRequest.Add(alias=alias, request=request)))
        return alias

    def abort(self, alias: int) -> None:
        """Stop a request; its sink hears nothing more. Unknown aliases have ended already."""
        if self._sinks.pop(alias, None) is not None:
            self._send(pb.SessionRequest(abort=pb.SessionRequest.Abort(aliases=[alias])))

    async def run(self, stub: Any) -> None:
        """Carry requests until the stream ends, which is always a loss.

        Raises:
            ConnectionLostError: always, unless cancelled.
        """
        call = stub.Session()
        writer = asyncio.create_task(self._write(call))
        try:
            await self._read(call)
        except grpc.aio.AioRpcError as error:
            raise ConnectionLostError(describe(error)) from None
        finally:
            writer.cancel()
            call.cancel()
        raise ConnectionLostError("the engine ended the session")

    def lose(self, reason: str) -> None:
        """Tell every sink that its request is gone with the stream."""
        sinks, self._sinks = self._sinks, {}
        self._outbox.clear()
        for sink in sinks.values():
            sink.on_lost(reason)

    def _next_alias(self) -> int:
        alias = self._last_alias % MAX_ALIAS + 1
        while alias in self._sinks:
            alias = alias % MAX_ALIAS + 1
        self._last_alias = alias
        return alias

    def _send(self, message: pb.SessionRequest) -> None:
        self._outbox.append(message)
        self._wakeup.set()

    async def _write(self, call: Any) -> None:
        try:
            while True:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                self._wakeup.clear()
                await self._wakeup.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended; the reader says why.
            return

    async def _read(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.HasField("load"):
                self._on_load(message.load)
            for item in message.items:
                self._deliver(item)

    def _deliver(self, item: pb.SessionResponse.Item) -> None:
        sink = self._sinks.get(item.alias)
        if sink is None:
            return  # aborted a moment ago
        if item.HasField("error"):
            del self._sinks[item.alias]
            sink.on_error(item.error)
            return
        if item.response.HasField("usage"):
            del self._sinks[item.alias]
        sink.on_response(item.response)


def describe(error: grpc.aio.AioRpcError) -> str:
    """Return a gRPC failure as one short phrase."""
    return f"{error.code().name}: {error.details()}"
