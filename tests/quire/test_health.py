"""`quire health`: what container probes ask."""

import functools
import http.server
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from quire.cli import main

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def engine(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "ready").write_text("ok")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_serving_engine_is_healthy(
    engine: str, servicer: health.HealthServicer, capsys: pytest.CaptureFixture[str]
) -> None:
    servicer.set("", SERVING)

    assert main(["health", engine]) == 0
    assert capsys.readouterr().out == f"{engine}: SERVING\n"


def test_a_draining_engine_is_not(
    engine: str, servicer: health.HealthServicer, capsys: pytest.CaptureFixture[str]
) -> None:
    servicer.set("", NOT_SERVING)

    assert main(["health", engine]) == 1
    assert capsys.readouterr().err == f"{engine}: NOT_SERVING\n"


def test_nobody_there_is_told_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "unix:/nowhere.sock", "--timeout", "60"]) == 1
    assert "unix:/nowhere.sock: UNAVAILABLE" in capsys.readouterr().err
    assert main(["health", "http://127.0.0.1:1/health"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_a_url_is_healthy_if_it_answers_well(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", f"{site}/ready"]) == 0
    assert capsys.readouterr().out == f"{site}/ready: 200\n"
    assert main(["health", f"{site}/absent"]) == 1
    assert "404" in capsys.readouterr().err
