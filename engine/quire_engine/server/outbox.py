"""Messages on their way to one client, bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

MessageT = TypeVar("MessageT")


class ReaderTooSlowError(Exception):
    """A client reads more slowly than its requests generate."""

    def __init__(self, max_buffered: int) -> None:
        super().__init__(f"more than {max_buffered} outputs were waiting to be read")


class Outbox(Generic[MessageT]):
    """A queue that one task empties; when it overflows it drops everything and fails."""

    def __init__(self, max_buffered: int) -> None:
        self._max_buffered = max_buffered
        self._waiting: deque[tuple[MessageT, int]] = deque()
        self._num_buffered = 0
        self._is_ended = False
        self._error: Exception | None = None
        self._wakeup = asyncio.Event()

    @property
    def is_ended(self) -> bool:
        return self._is_ended

    def put(self, message: MessageT, num_outputs: int) -> None:
        """Add a message that holds so many outputs; dropped once the outbox has ended."""
        if self._is_ended:
            return
        self._waiting.append((message, num_outputs))
        self._num_buffered += num_outputs
        if self._num_buffered > self._max_buffered:
            self._waiting.clear()
            self.end(ReaderTooSlowError(self._max_buffered))
        self._wakeup.set()

    def end(self, error: Exception | None = None) -> None:
        """Let the reader go once it has read the rest; the first end counts."""
        if not self._is_ended:
            self._is_ended, self._error = True, error
            self._wakeup.set()

    async def messages(self) -> AsyncIterator[MessageT]:
        """Yield messages in order until the end; raise what it ended with."""
        while True:
            while self._waiting:
                message, num_outputs = self._waiting.popleft()
                self._num_buffered -= num_outputs
                yield message
            if self._is_ended:
                break
            self._wakeup.clear()
            await self._wakeup.wait()
        if self._error is not None:
            raise self._error
