"""News of a router's replicas: once, or again and again over lost connections."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from quire.openai_client import OpenAIClient, ServerError, ServerEvent
from quire.top.board import Board, News

PATH = "/v1/replicas"
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 5.0
SILENCE_S = 5.0
"""Events come every second; a connection without any for so long is dead."""
ANSWER_S = 10.0
FINAL = (401, 403, 404)
"""Answers that asking again does not change."""


class NotARouterError(ServerError):
    """Something answers, but it is no router of Quire's."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url} is no Quire router: {why}", status=404)


async def fetch(client: OpenAIClient) -> bytes:
    """Return what a router answers to `GET /v1/replicas`.

    Raises:
        NotARouterError: it answered with something else.
        ServerError: nothing listens, or it refused.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            data = await client.get(PATH)
        News.parse(data)
    except TimeoutError:
        raise ServerError(f"{client.url} did not answer within {ANSWER_S:g} s") from None
    except ValueError as error:
        raise NotARouterError(client.url, f"{PATH} answers something else ({error})") from None
    except ServerError as error:
        raise _explained(error, client.url) from error
    return data


async def follow(client: OpenAIClient, board: Board, on_change: Callable[[], None]) -> None:
    """Keep the board up to date until cancelled, telling of each change.

    Raises:
        ServerError: the router refuses, and will go on to.
    """
    wait_s = FIRST_WAIT_S
    while True:
        reason = "the router ended the stream"
        try:
            async with aclosing(_events(client)) as events:
                async for event in events:
                    news = News.parse(event.data)
                    board.take(news, time.monotonic(), is_snapshot=event.name == "snapshot")
                    on_change()
                    wait_s = FIRST_WAIT_S
        except ServerError as error:
            if error.status in FINAL:
                raise _explained(error, client.url) from error
            reason = str(error)
        except TimeoutError:
            reason = f"nothing was heard for {SILENCE_S:g} s"
        except ValueError as error:
            reason = f"an event is not understood: {error}"
        board.lose(reason, time.monotonic(), retry_in_s=wait_s)
        on_change()
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, MAX_WAIT_S)


async def _events(client: OpenAIClient) -> AsyncGenerator[ServerEvent, None]:
    """Yield events; TimeoutError when they cease."""
    async with aclosing(client.follow(f"{PATH}/events")) as events:
        while True:
            async with asyncio.timeout(SILENCE_S):
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
            yield event


def _explained(error: ServerError, url: str) -> ServerError:
    if error.status == 404:
        return NotARouterError(url, f"it has no {PATH}")
    if error.status in (401, 403):
        message = f"{error}; give it with --api-key or QUIRE_API_KEY"
        return ServerError(message, status=error.status)
    return error
