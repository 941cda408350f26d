"""Doors into the cluster's network: local ports whose connections go on from inside it."""

import asyncio
import ctypes
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Self

CLONE_NEWNET = 0x40000000


class Tunnel:
    """A port of this machine's loopback that leads to an address inside a network namespace."""

    def __init__(self, namespace: int, host: str, port: int) -> None:
        self._namespace = namespace
        self._target = (host, port)
        # A socket belongs to the namespace that it was made in: this one listens out here.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # The loop itself holds tasks only weakly.
        self._connections: set[asyncio.Task[None] | None] = set()

    @property
    def address(self) -> str:
        """Return host:port for clients on this machine."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        _enter_network(self._namespace)
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._listener)
        )
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        tasks = asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True)
        self._loop.run_until_complete(tasks)
        # Transports close in the turn after the one in which they are told to.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        self._connections.add(connection)
        try:
            await self._connect(reader, writer)
        finally:
            self._connections.discard(connection)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            # An abrupt end, as from a server that is not there. Only the tunnel's end cancels, and
            # a server of streams would report that as an error.
            writer.transport.abort()
            return
        directions = [
            asyncio.create_task(_copy(reader, far_writer)),
            asyncio.create_task(_copy(far_reader, writer)),
        ]
        try:
            await asyncio.wait(directions)
        except asyncio.CancelledError:
            # What is not yet passed on would keep them open.
            writer.transport.abort()
            far_writer.transport.abort()
        finally:
            for task in directions:
                task.cancel()
            writer.close()
            far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    else:
        with suppress(OSError):
            writer.write_eof()


def listen_inside(namespace: int, host: str) -> socket.socket:
    """Return a socket that listens in a network namespace, for a server of this process."""

    def listen() -> socket.socket:
        _enter_network(namespace)
        return socket.create_server((host, 0))

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(listen).result()


def _enter_network(namespace: int) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
