import asyncio

import pytest

from quire_engine.server.outbox import Outbox, ReaderTooSlowError


async def read(outbox: Outbox[str]) -> list[str]:
    return [message async for message in outbox.messages()]


async def test_messages_come_in_order_and_the_rest_is_read_after_the_end() -> None:
    outbox: Outbox[str] = Outbox(10)
    outbox.put("a", 1)
    reader = asyncio.create_task(read(outbox))
    await asyncio.sleep(0)
    outbox.put("b", 1)
    outbox.put("c", 1)
    outbox.end()
    outbox.put("too late", 1)

    assert await reader == ["a", "b", "c"]


async def test_an_overflow_drops_everything_and_is_an_error() -> None:
    outbox: Outbox[str] = Outbox(3)
    outbox.put("a", 2)
    outbox.put("b", 2)

    assert outbox.is_ended
    with pytest.raises(ReaderTooSlowError, match="more than 3 outputs"):
        await read(outbox)


async def test_what_was_read_makes_room() -> None:
    outbox: Outbox[str] = Outbox(2)
    messages = outbox.messages()
    for text in ("a", "b", "c", "d"):
        outbox.put(text, 2)
        assert await anext(messages) == text

    assert not outbox.is_ended


async def test_the_first_error_counts() -> None:
    outbox: Outbox[str] = Outbox(2)
    outbox.end(ValueError("first"))
    outbox.end(ValueError("second"))

    with pytest.raises(ValueError, match="first"):
        await read(outbox)
