"""A tunnel's end, whatever its connections are at: nothing stays open behind it."""

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from local_cluster.tunnel import Tunnel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="entering a network takes root")


@pytest.fixture
def network() -> Iterator[int]:
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_bytes_go_both_ways(network: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Tunnel(network, "127.0.0.1", server.getsockname()[1]) as tunnel,
        socket.create_connection(("127.0.0.1", tunnel.port)) as near,
    ):
        far, _ = server.accept()
        with far:
            near.sendall(b"ping")
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert near.recv(4) == b"pong"


def test_a_connection_that_nobody_answers_ends_with_the_tunnel(network: int) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        # The queue of a server that accepts nothing is full after one.
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with (
            Tunnel(network, "127.0.0.1", port) as tunnel,
            socket.create_connection(("127.0.0.1", tunnel.port)) as near,
        ):
            near.settimeout(0.3)
            with pytest.raises(TimeoutError):
                near.recv(1)
    # What was left open warns when it is collected, and warnings are errors here.
    gc.collect()


def test_bytes_that_nobody_reads_end_with_the_tunnel(network: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Tunnel(network, "127.0.0.1", server.getsockname()[1]) as tunnel,
        socket.create_connection(("127.0.0.1", tunnel.port)) as near,
    ):
        far, _ = server.accept()
        with far:
            near.settimeout(0.3)
            with pytest.raises(TimeoutError):
                near.sendall(bytes(64 << 20))
    gc.collect()
