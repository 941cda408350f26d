"""Spans on their way to a collector that is there, or not."""

import asyncio
import importlib.util
import io
import logging
import socket
import subprocess
import sys
import time

import pytest

from otlp_receiver import DEADLINE_S, grpc_receiver, http_receiver
from quire_engine.rpc import tracing as module
from quire_engine.rpc.collector import TracingError
from quire_engine.rpc.trace_context import NO_TRACE_CONTEXT, TraceContext
from quire_engine.rpc.tracing import Tracing, start_tracing

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def nowhere() -> str:
    """A port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start(url: str) -> Tracing:
    return start_tracing(url, "auto", service="quire-test", environment={})


@pytest.mark.parametrize("receiver_of", [grpc_receiver, http_receiver])
async def test_spans_arrive_and_the_last_ones_when_it_closes(receiver_of: object) -> None:
    async with receiver_of() as receiver:  # type: ignore[operator]  # one of two functions
        tracing = start(receiver.url)
        tracing.start("first", tracing.context(NO_TRACE_CONTEXT)).end()
        await receiver.wait_for("first")
        tracing.start("last", tracing.context(NO_TRACE_CONTEXT)).end()
        await asyncio.to_thread(tracing.close)

        assert [span.name for span in receiver.spans] == ["first", "last"]
        assert {span.service for span in receiver.spans} == {"quire-test"}


async def test_the_standard_variables_name_the_service_and_choose_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with grpc_receiver() as receiver:
        tracing = start(receiver.url)
        own = tracing.start("own", tracing.context(NO_TRACE_CONTEXT))
        below = tracing.start("below", tracing.context(TraceContext(PARENT)))
        own.end()
        below.end()
        await asyncio.to_thread(tracing.close)

    assert not own.is_recording()
    assert [(span.name, span.service) for span in receiver.spans] == [("below", "mine")]


async def test_contexts_cross_processes_with_their_state() -> None:
    async with grpc_receiver() as receiver:
        tracing = start(receiver.url)
        span = tracing.start("one", tracing.context(TraceContext(PARENT, "vendor=1")))
        sent = tracing.sent(span)
        span.end()
        await asyncio.to_thread(tracing.close)

    [received] = receiver.spans
    assert sent == TraceContext(f"00-{'a1' * 16}-{received.span_id}-01", "vendor=1")
    assert (received.parent_id, received.tracestate) == ("b2" * 8, "vendor=1")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_dead_collector_is_told_once_and_holds_nothing_up(
    nowhere: str, scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracing = start(f"{scheme}://{nowhere}")

    with caplog.at_level(logging.WARNING):
        logging.getLogger().addHandler(handler)
        deadline = time.monotonic() + DEADLINE_S
        while "not exported" not in written.getvalue() and time.monotonic() < deadline:
            for _ in range(100):  # more than the queue holds
                tracing.start("lost", tracing.context(NO_TRACE_CONTEXT)).end()
            time.sleep(0.05)
        time.sleep(1.5)  # time for more attempts to fail
        began_at = time.monotonic()
        tracing.close(timeout_s=0.2)
        took_s = time.monotonic() - began_at
        logging.getLogger().removeHandler(handler)

    first, *rest = written.getvalue().splitlines()
    assert first.startswith("traces not exported")
    assert nowhere in first
    assert all(line.startswith("traces lost") for line in rest)
    assert took_s < 30


async def test_a_collector_that_comes_back_gets_what_follows(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with http_receiver() as receiver:
        receiver.is_down = True
        tracing = start(receiver.url)
        with caplog.at_level(logging.WARNING, module.__name__):
            tracing.start("lost", tracing.context(NO_TRACE_CONTEXT)).end()
            async with asyncio.timeout(DEADLINE_S):
                while "not exported" not in caplog.text:  # noqa: ASYNC110 - another thread's doing
                    await asyncio.sleep(0.02)
            receiver.is_down = False
            tracing.start("kept", tracing.context(NO_TRACE_CONTEXT)).end()
            await receiver.wait_for("kept")
            await asyncio.to_thread(tracing.close)

    assert [span.name for span in receiver.spans] == ["kept"]
    assert "again" in caplog.records[-1].getMessage()
    assert "num_lost=1" in caplog.records[-1].getMessage()


def test_without_the_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", gone)

    with pytest.raises(TracingError, match=r"opentelemetry\.sdk.*pip install 'quire\[otlp\]'"):
        start("http://collector:4318")


def test_no_exporter_is_imported_before_traces_are_asked_for() -> None:
    code = (
        "import sys, quire_engine.server.program, quire_router.server; from quire import LLM; "
        "print([name for name in sys.modules if name.startswith(("
        "'opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
