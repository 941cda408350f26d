"""A client that goes away stops costing anything, wherever its request was."""

import asyncio
from typing import Any

import aiohttp
import pytest

from http_support import ScriptedDispatcher, Served, until

CHAT = "/v1/chat/completions"
USER: Any = [{"role": "user", "content": "hi"}]


def is_cancelled(served: Served) -> bool:
    generations = served.script.generations
    return bool(generations) and all(item.was_cancelled for item in generations)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_client_that_leaves_before_the_first_token_is_aborted(
    serve_with: Any, path: str, stream: bool
) -> None:
    served = await serve_with(ScriptedDispatcher(hang_after=0))
    body: dict[str, Any] = {"stream": stream}
    body |= {"messages": USER} if path == CHAT else {"prompt": ["a", "b"]}

    request = asyncio.create_task(served.post(path, body))
    await until(lambda: bool(served.script.generations))
    request.cancel()

    await until(lambda: is_cancelled(served))
    await until(lambda: "client_disconnects_total{" in served.metrics())
    assert f'requests_total{{route="{path}",status="499"}} 1.0' in served.metrics()


async def test_a_client_that_leaves_a_stream_is_aborted(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(hang_after=3))
    client = await served.client()
    stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)

    for _ in range(3):
        await anext(stream)
    await stream.close()

    await until(lambda: is_cancelled(served))
    assert is_cancelled(served)


async def test_a_client_that_leaves_while_its_body_is_sent_starts_nothing(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    writer.write(head + b'{"prompt"')
    await writer.drain()
    await until(lambda: "requests_in_flight 1.0" in served.metrics())

    writer.close()
    await writer.wait_closed()

    await until(lambda: "requests_in_flight 0.0" in served.metrics())
    assert served.script.generations == []


async def test_an_answer_to_its_end_aborts_nothing(served: Served) -> None:
    await served.post(CHAT, {"messages": USER})
    await served.events(CHAT, {"messages": USER})

    assert not is_cancelled(served)
    assert "client_disconnects_total{" not in served.metrics()


async def test_a_slow_reader_holds_back_its_own_generation_alone(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(answer="x" * 500))
    async with aiohttp.ClientSession(read_bufsize=1024) as session:
        body = {"prompt": "a", "max_tokens": 500, "stream": True}
        async with session.post(served.url + "/v1/completions", json=body) as response:
            await response.content.readany()
            status, _ = await served.post(CHAT, {"messages": USER, "max_tokens": 2})
            text = await response.text()

    assert status == 200
    assert text.endswith("data: [DONE]\n\n")
