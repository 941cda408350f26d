"""Fake engines and a router, each a process of its own, as in pods."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import aiohttp

from serve_process import free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}/engine:{ROOT}/router", "QUIRE_API_KEY": ""}
DEADLINE_S = 60.0


class Server:
    """One process, and where it listens."""

    def __init__(self, process: Process, address: str) -> None:
        self.process = process
        self.address = address

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def terminate(self) -> None:
        """Ask it to end, as a kubelet does."""
        self.process.send_signal(signal.SIGTERM)

    async def status(self) -> int:
        """Wait for its end and return its exit status."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def engine(socket: Path, *flags: str) -> AsyncIterator[Server]:
    """A fake engine on a unix socket, 5 ms a step; ready when it is yielded."""
    async with _engine(f"unix:{socket}", "--uds", str(socket), *flags) as server:
        yield server


@asynccontextmanager
async def tcp_engine(*flags: str, log: Path | None = None) -> AsyncIterator[Server]:
    """The same on a port of the loopback address; what it logs goes to a file, if one is given."""
    port = str(free_port())
    place = ("--host", "127.0.0.1", "--port", port)
    async with _engine(f"127.0.0.1:{port}", *place, *flags, log=log) as server:
        yield server


@asynccontextmanager
async def _engine(address: str, *flags: str, log: Path | None = None) -> AsyncIterator[Server]:
    with _opened(log) as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quire_engine.testing", "--decode-ms", "5"),
            *("--metrics-port", "-1", *flags),
            stdout=PIPE,
            stderr=errors,
            env=ENVIRONMENT,
        )
    assert process.stdout is not None
    async with ending(process):
        async with asyncio.timeout(DEADLINE_S):
            while b"ready: " not in (line := await process.stdout.readline()):
                assert line, "the engine did not start"
        yield Server(process, address)


@asynccontextmanager
async def router(
    *replicas: str, flags: tuple[str, ...] = (), port: int = 0, log: Path | None = None
) -> AsyncIterator[Server]:
    """A router, listening when it is yielded; on a free port unless one is given."""
    port = port or free_port()
    with _opened(log) as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quire.cli", "router", "--host", "127.0.0.1"),
            *("--port", str(port), "--replicas", *replicas, *flags),
            stdout=DEVNULL,
            stderr=errors,
            env=ENVIRONMENT,
        )
    server = Server(process, f"127.0.0.1:{port}")
    async with ending(process):
        await until_answers(f"{server.url}/health", 200)
        yield server


@contextmanager
def _opened(log: Path | None) -> Iterator[IO[bytes] | int]:
    if log is None:
        yield DEVNULL
    else:
        with log.open("wb") as file:
            yield file


@asynccontextmanager
async def ending(process: Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def answer_of(url: str) -> int:
    """Return the status of a GET, 0 where nobody listens."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return 0


async def until_answers(url: str, status: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await answer_of(url) != status:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
