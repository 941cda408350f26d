"""What `quire top` does: asks once, and goes on to follow where there is a terminal for it."""

import json
import sys
import time

from quire.openai_client import OpenAIClient
from quire.top.board import Board, News
from quire.top.feed import fetch
from quire.top.options import TopConfig

WIDE = 10_000
"""Columns of what is no terminal: programs that read it want nothing left out."""


async def show(config: TopConfig, api_key: str) -> None:
    """Show the replicas of a router.

    Raises:
        ServerError: there is no router, or it refuses.
    """
    async with OpenAIClient(config.url, api_key=api_key) as client:
        # Also before the terminal is taken over: what is wrong from the start is told in one line.
        answer = await fetch(client)
        if config.json:
            sys.stdout.write(json.dumps(json.loads(answer), indent=2) + "\n")
            return
        board = Board()
        board.take(News.parse(answer), time.monotonic(), is_snapshot=True)
        await _show(board, client, is_once=config.once)


async def _show(board: Board, client: OpenAIClient, *, is_once: bool) -> None:
    from rich.console import Console

    from quire.top.view import Size, once

    console = Console(highlight=False)
    is_terminal = sys.stdout.isatty() and not console.is_dumb_terminal
    if is_terminal and not is_once:
        from quire.top.terminal import LiveView

        await LiveView(board, console, client.url).run(client)
        return
    width = console.width if is_terminal else WIDE
    size = Size(width=width, height=0, is_ascii=console.options.ascii_only)
    console.print(once(board, client.url, time.monotonic(), size), soft_wrap=True)
