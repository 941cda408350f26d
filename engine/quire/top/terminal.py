"""The terminal that `quire top` takes over, and gives back as it was."""

import asyncio
import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from quire.openai_client import OpenAIClient, ServerError
from quire.top.board import Board
from quire.top.feed import follow
from quire.top.view import Size, screen

REDRAW_S = 1.0
"""At the latest: ages grow while nothing is heard."""
QUIT_KEYS = (b"q", b"Q", b"\x03", b"")
"""Nothing at all is what a terminal says that is gone."""
STEPS = {
    b"\x1b[A": -1,
    b"k": -1,
    b"\x1b[B": 1,
    b"j": 1,
    b"\x1b[5~": -10,
    b"\x1b[6~": 10,
}


class LiveView:
    """Shows a board until someone quits."""

    def __init__(self, board: Board, console: Console, url: str) -> None:
        self._board = board
        self._console = console
        self._url = url
        self._first = 0
        self._has_quit = False
        self._changed = asyncio.Event()

    async def run(self, client: OpenAIClient) -> None:
        """Show, and follow the router.

        Raises:
            ServerError: the router refuses, and will go on to.
        """
        refusal: ServerError | None = None
        with self._terminal() as live:
            try:
                async with asyncio.TaskGroup() as group:
                    following = group.create_task(follow(client, self._board, self._changed.set))
                    await self._draw(live)
                    following.cancel()
            except* ServerError as group_error:
                refusal = next(iter(_leaves(group_error)))
        if refusal is not None:
            raise refusal

    def quit(self) -> None:
        """End at once."""
        self._has_quit = True
        self._changed.set()

    def press(self, key: bytes) -> None:
        """Do what a key means."""
        if key in QUIT_KEYS:
            self.quit()
        elif key in STEPS:
            last = max(0, len(self._board.replicas) - 1)
            self._first = min(max(0, self._first + STEPS[key]), last)
            self._changed.set()

    async def _draw(self, live: Live) -> None:
        while not self._has_quit:
            width, height = self._console.size
            is_ascii = self._console.options.ascii_only
            size = Size(width=width, height=height, is_ascii=is_ascii)
            view = screen(self._board, self._url, time.monotonic(), size, first=self._first)
            live.update(view, refresh=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), REDRAW_S)
            self._changed.clear()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[Live]:
        live = Live(console=self._console, screen=True, auto_refresh=False)
        with _signals(self.quit, self._changed.set), _keys(self.press), live:
            yield live


@contextlib.contextmanager
def _signals(quit_: Callable[[], None], redraw: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    actions = {
        signal.SIGINT: quit_,
        signal.SIGTERM: quit_,
        signal.SIGHUP: quit_,
        signal.SIGWINCH: redraw,
    }
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in actions:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _keys(press: Callable[[bytes], None]) -> Iterator[None]:
    """Tell of every key, without waiting for the end of a line and without showing it."""
    if not sys.stdin.isatty():
        yield
        return
    loop, source = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(source)
    tty.setcbreak(source)
    loop.add_reader(source, lambda: press(os.read(source, 16)))
    try:
        yield
    finally:
        loop.remove_reader(source)
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def _leaves(group: BaseExceptionGroup[ServerError]) -> Iterator[ServerError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
