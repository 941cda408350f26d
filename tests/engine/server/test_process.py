"""The life of an engine's processes: real ones, with real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_client import DEADLINE_S, collect, generate, read_all, stub_of
from quire_engine.rpc import engine_pb2 as pb

ROOT = Path(__file__).parents[3]


class Engine:
    """A fake engine's process and its output."""

    def __init__(self, process: asyncio.subprocess.Process, uds: Path) -> None:
        self.process = process
        self.address = f"unix:{uds}"
        self.uds = uds

    async def line(self, start: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := (await self.process.stdout.readline()).decode():
                if line.startswith(start):
                    return line
        raise AssertionError(f"no line starts with {start!r}")

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def end(self) -> tuple[int, str]:
        """Wait for the end; return the status and what was on standard error."""
        async with asyncio.timeout(DEADLINE_S):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


async def spawn(uds: Path, *flags: str) -> Engine:
    command = ("-m", "quire_engine.testing", "--uds", str(uds), "--metrics-port", "-1", *flags)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "engine")},
    )
    return Engine(process, uds)


@asynccontextmanager
async def engine_process(uds: Path, *flags: str) -> AsyncIterator[Engine]:
    engine = await spawn(uds, *flags)
    try:
        await engine.line("ready")
        yield engine
    finally:
        if engine.process.returncode is None:
            engine.process.kill()
            await engine.process.communicate()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while is_alive(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(tmp_path: Path) -> None:
    flags = ("--decode-ms", "5", "--core-process")
    async with (
        engine_process(tmp_path / "engine.sock", *flags) as engine,
        stub_of(engine.address) as stub,
    ):
        call = stub.Generate(generate(max_tokens=100))
        await call.read()
        (core,) = engine.children()
        os.kill(core, signal.SIGSTOP)

        os.kill(core, signal.SIGTERM)  # a service manager signals the whole group
        engine.process.send_signal(signal.SIGTERM)
        await engine.line("stopping: 1 requests")
        with pytest.raises(grpc.aio.AioRpcError, match="draining"):
            await collect(stub.Generate(generate()))
        os.kill(core, signal.SIGCONT)
        _, responses = await collect(call)

        assert responses[-1].usage.num_completion_tokens == 100
        status, errors = await engine.end()
        assert (status, "Traceback" in errors) == (0, False)
        assert not is_alive(core)
        assert not engine.uds.exists()


async def test_what_outlasts_the_shutdown_timeout_is_aborted_and_the_status_is_0(
    tmp_path: Path,
) -> None:
    flags = ("--decode-ms", "5", "--shutdown-timeout", "0.1")
    async with (
        engine_process(tmp_path / "engine.sock", *flags) as engine,
        stub_of(engine.address) as stub,
    ):
        call = stub.Generate(generate(max_tokens=8000))
        await call.read()

        engine.process.send_signal(signal.SIGTERM)

        with pytest.raises(grpc.aio.AioRpcError, match="shut down") as caught:
            await collect(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await engine.end())[0] == 0


async def test_a_second_ctrl_c_ends_at_once_without_a_traceback(tmp_path: Path) -> None:
    flags = ("--decode-ms", "5", "--core-process")
    async with (
        engine_process(tmp_path / "engine.sock", *flags) as engine,
        stub_of(engine.address) as stub,
    ):
        call = stub.Generate(generate(max_tokens=8000))
        await call.read()
        (core,) = engine.children()

        engine.process.send_signal(signal.SIGINT)
        await engine.line("stopping")
        engine.process.send_signal(signal.SIGINT)

        status, errors = await engine.end()
        assert (status, "Traceback" in errors) == (130, False), errors
        await until_dead(core)
        call.cancel()


async def test_the_death_of_the_core_is_told_at_once_and_ends_the_process(tmp_path: Path) -> None:
    flags = ("--decode-ms", "5", "--core-process")
    async with (
        engine_process(tmp_path / "engine.sock", *flags) as engine,
        stub_of(engine.address) as stub,
        grpc.aio.insecure_channel(engine.address) as channel,
    ):
        call = stub.Generate(generate(max_tokens=8000))
        await call.read()
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        (core,) = engine.children()

        os.kill(core, signal.SIGKILL)

        with pytest.raises(grpc.aio.AioRpcError, match="killed by SIGKILL") as caught:
            await collect(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        status, errors = await engine.end()
        assert status == 1
        assert "core died" in errors
        assert "Traceback" not in errors


async def test_the_core_does_not_outlive_a_killed_frontend(tmp_path: Path) -> None:
    async with engine_process(tmp_path / "engine.sock", "--core-process") as engine:
        (core,) = engine.children()

        engine.process.kill()

        await engine.end()
        await until_dead(core)


async def test_a_stop_ends_streams_that_would_never_end(tmp_path: Path) -> None:
    async with (
        engine_process(tmp_path / "engine.sock") as engine,
        stub_of(engine.address) as stub,
    ):
        session = stub.Session()
        loads = stub.WatchLoad(pb.WatchLoadRequest())
        events = stub.WatchKvEvents(pb.WatchKvEventsRequest())
        await loads.read()
        await events.read()

        engine.process.send_signal(signal.SIGTERM)

        for call in (loads, events, session):
            await read_all(call)
            assert await call.code() is grpc.StatusCode.OK
        assert (await engine.end())[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--uds", "/no/such/place/engine.sock"), "there is no directory /no/such/place"),
        (("--hang-timeout-s", "0"), "hang_timeout_s must be more than 0"),
        (("--metrics-prot", "0"), "did you mean --metrics-port?"),
        (("--decode-ms", "-1"), "decode_ms must be at least 0"),
    ],
)
async def test_a_wrong_configuration_is_one_line_and_status_2(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    engine = await spawn(tmp_path / "engine.sock", *flags)

    status, errors = await engine.end()

    assert status == 2
    assert message in errors
    assert errors.count("\n") == 1


async def test_metrics_are_served_on_a_port_of_their_own(tmp_path: Path) -> None:
    uds = tmp_path / "engine.sock"
    engine = await spawn(uds, "--metrics-port", "0", "--host", "127.0.0.1")
    port = int((await engine.line("ready")).rsplit(" ", 1)[1])
    async with stub_of(engine.address) as stub:
        await collect(stub.Generate(generate(max_tokens=7)))

    def scrape() -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S
        ) as response:
            return str(response.read().decode())

    text = await asyncio.to_thread(scrape)

    assert 'quire_engine_generation_tokens_total{engine="0",model_name="fake"} 7.0' in text
    assert 'finished_reason="length",model_name="fake"} 1.0' in text
    engine.process.send_signal(signal.SIGTERM)
    assert (await engine.end())[0] == 0


@pytest.mark.parametrize("module", ["quire_engine.server.program", "quire_engine.testing.__main__"])
def test_the_frontend_runs_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"

    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "engine")},
        check=True,
    )


async def test_the_real_program_refuses_a_model_that_is_not_there(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire_engine", "/no/such/model"),
        *("--uds", str(tmp_path / "engine.sock"), "--metrics-port", "-1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "engine")},
    )

    status, errors = await Engine(process, tmp_path / "engine.sock").end()

    assert status == 2
    assert errors == ("python -m quire_engine: error: no such file or directory: /no/such/model\n")
