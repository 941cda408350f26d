"""Bytes that no well-behaved client sends."""

import asyncio
import json

import pytest

from http_support import DEADLINE_S, Served


async def exchange(served: Served, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(65536), DEADLINE_S)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["no-http", "no-path", "bad-length", "bad-chunk", "tls"],
)
async def test_what_is_not_http_is_refused_and_harms_nobody(served: Served, data: bytes) -> None:
    answer = await exchange(served, data)

    assert answer.startswith(b"HTTP/1.1 400") or answer == b""
    assert (await served.get("/health"))[0] == 200


async def test_bodies_in_chunks_are_put_together(served: Served) -> None:
    body = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"

    answer = await exchange(served, head + b"Connection: close\r\n\r\n" + chunks)

    assert answer.startswith(b"HTTP/1.1 200")


async def test_the_content_type_does_not_matter(served: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"

    answer = await exchange(served, head + b"Content-Length: 15\r\n\r\n" + b'{"prompt":"hi"}')

    assert answer.startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    one = b"GET /v1/models/fake HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /v1/models/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(one + two)

    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)

    writer.close()
    assert answer.index(b"HTTP/1.1 200") < answer.index(b"HTTP/1.1 404")


async def test_one_connection_serves_one_request_after_another(served: Served) -> None:
    for _ in range(20):
        status, _ = await served.post("/v1/completions", {"prompt": "hi", "max_tokens": 1})
        assert status == 200
    assert served.http.connector is not None
    assert len(served.http.connector._conns) == 1
