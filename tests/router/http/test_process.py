"""The router as a process in front of fake engines: what a user runs, and how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from http_support import DEADLINE_S, until
from quire_engine.testing import FakeEngine, FakeModel
from serve_process import free_port
from serving_processes import until_answers

CODE = """
import json, sys
from quire_router.config import RouterConfig
from quire_router.server import run
options = {key: tuple(value) if isinstance(value, list) else value
           for key, value in json.loads(sys.argv[1]).items()}
sys.exit(run(RouterConfig(**options)))
"""
ROOT = Path(__file__).parents[3]
USER: Any = [{"role": "user", "content": "hi"}]


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    engine: FakeEngine
    client: openai.AsyncOpenAI

    async def end(self, *signals: signal.Signals) -> tuple[int, str]:
        for number in signals:
            self.process.send_signal(number)
            # One that comes before the last was handled is no second signal.
            await until(lambda: "stopping signal=" in self.log.read_text())
        status = await asyncio.to_thread(self.process.wait, DEADLINE_S)
        return status, self.log.read_text()


def start_router(options: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    path = f"{ROOT}/engine:{ROOT}/router"
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(options)],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": path, "QUIRE_API_KEY": "key"},
        )


async def read_to_end(stream: Any) -> list[str | None]:
    """Return the finish reasons of all chunks that are left."""
    return [chunk.choices[0].finish_reason async for chunk in stream]


@pytest.fixture
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """A router in front of one engine of 5 ms a step.

    Shutting down may take as many seconds as a test says, or longer than any test takes.
    """
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(FakeEngine(FakeModel(decode_ms=5)))
        port, log = free_port(), tmp_path / "router.log"
        options = {
            "host": "127.0.0.1",
            "port": port,
            "replicas": [engine.address],
            "shutdown_timeout": getattr(request, "param", 10 * DEADLINE_S),
        }
        process = await asyncio.to_thread(start_router, options, log)
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="key", max_retries=0)
        )
        try:
            await until_answers(f"http://127.0.0.1:{port}/ready", 200)
            yield Running(process, port, log, engine, client)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


async def test_it_serves_and_ends_with_status_0(running: Running) -> None:
    answer = await running.client.chat.completions.create(
        model="fake", messages=USER, max_tokens=8, logprobs=True, top_logprobs=2
    )
    with pytest.raises(openai.AuthenticationError):
        await running.client.with_options(api_key="no").models.list()

    status, log = await running.end(signal.SIGTERM)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].logprobs is not None
    assert status == 0
    assert "Traceback" not in log
    assert "stopped" in log


async def test_a_short_stream_ends_well_in_a_shutdown(running: Running) -> None:
    stream = await running.client.completions.create(
        model="fake", prompt="hi", max_tokens=60, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(stream)

    ending = asyncio.create_task(running.end(signal.SIGTERM))
    reasons = await read_to_end(stream)
    status, log = await ending

    assert reasons[-1] == "length"
    assert status == 0
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("running", "signals"),
    [(1.0, (signal.SIGTERM,)), (10 * DEADLINE_S, (signal.SIGINT, signal.SIGINT))],
    indirect=["running"],
    ids=["timeout", "twice"],
)
async def test_an_endless_stream_ends_with_an_error_in_a_shutdown(
    running: Running, signals: tuple[signal.Signals, ...]
) -> None:
    stream = await running.client.completions.create(
        model="fake", prompt="hi", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(stream)

    ending = asyncio.create_task(running.end(*signals))
    with pytest.raises(openai.APIError, match="shutting down"):
        await read_to_end(stream)
    status, log = await ending

    assert status == 0
    assert "Traceback" not in log
    await until(lambda: running.engine.num_in_flight == 0)


async def test_a_client_that_leaves_frees_the_engine(running: Running) -> None:
    endless: dict[str, Any] = {"prompt": "hi", "max_tokens": 8000, "ignore_eos": True}
    for stream in (True, False):
        request = asyncio.create_task(
            running.client.post("/completions", cast_to=str, body={**endless, "stream": stream})
        )
        await until(lambda: running.engine.num_in_flight == 1)

        request.cancel()

        await until(lambda: running.engine.num_in_flight == 0)
    await until(lambda: running.engine.num_used_blocks == 0)


async def test_an_engine_that_dies_ends_its_streams_with_an_error(running: Running) -> None:
    stream = await running.client.chat.completions.create(
        model="fake",
        messages=USER,
        max_tokens=8000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    await anext(stream)

    await running.engine.die()

    with pytest.raises(openai.APIError):
        await read_to_end(stream)
