"""Connections to an API server over TLS end when they are done with, whatever the server does."""

import asyncio
import gc
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire_router.kubernetes_api import ApiServerError, InCluster, KubernetesApi

LIST = b'{"items": [], "metadata": {"resourceVersion": "1"}}'
ANSWERS = {
    "/list": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(LIST), LIST),
    "/forbidden": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}",
    "/watch": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}
Ask = Callable[[KubernetesApi], Coroutine[Any, Any, None]]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    """A server that answers one request and never hangs up."""
    new_key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "key.pem")]
    names = ["-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *new_key, *names, "-out", str(tmp_path / "ca.crt")]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "token").write_text("token")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key.pem")
    done = threading.Event()

    def serve() -> None:
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True) as connection:
            path = connection.recv(65536).split(b"?")[0].split()[1]
            connection.sendall(ANSWERS[path.decode()])
            done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield KubernetesApi(InCluster(base_url=f"https://127.0.0.1:{port}", directory=tmp_path))
        done.set()
        thread.join()


async def list_one(api: KubernetesApi) -> None:
    assert (await api.list("/list", label_selector="a")).items == []


async def be_refused(api: KubernetesApi) -> None:
    with pytest.raises(ApiServerError):
        await api.list("/forbidden", label_selector="a")


async def watch(api: KubernetesApi) -> None:
    async for _ in api.watch("/watch", label_selector="a", resource_version="1"):
        pass


async def break_a_watch_off(api: KubernetesApi) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch(api), 0.3)


@pytest.mark.parametrize("ask", [list_one, be_refused, break_a_watch_off])
def test_no_connection_is_left_to_a_server_that_does_not_hang_up(
    api: KubernetesApi, ask: Ask
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(ask(api))
        gc.collect()

    assert [str(warning.message) for warning in caught] == []
