"""A generation as its reader sees it: responses in order, whatever replica they come from.

What the reader has not collected is merged, so a slow reader costs no more memory than the whole
answer does; `cancel` frees it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.prefix import block_hashes
from quire_router.errors import ApiError, UnavailableError
from quire_router.merge import merge_responses
from quire_router.traces import NO_GENERATION, GenerationTrace

MAX_PENDING = 64
"""Responses kept apart; each keeps the engine's whole step message alive."""


class GenerationStream:
    """Implements `generation.Generation`; the dispatcher fills it through an `Attempt`."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        token_ids: Sequence[int],
        trace: GenerationTrace = NO_GENERATION,
    ) -> None:
        self.request = request
        self.trace = trace
        self.token_ids = token_ids
        self.created_at = time.monotonic()
        self.replica = ""
        """Address of the replica that runs it; empty until one was chosen."""
        self.abort: Callable[[], None] = _do_nothing
        """Frees what it holds where it is: queued here, or on a replica."""
        self.tried: set[tuple[str, int]] = set()
        """Connections that have failed it, by `Replica.incarnation`."""
        self.num_retries = 0
        self.is_started = False
        """Whether anything was produced: then no other replica may begin it anew."""
        self.is_ended = False
        self._hashes: dict[tuple[int, int], list[int]] = {}
        self._pending: list[pb.GenerateResponse] = []
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; a guess when the engine is to tokenize it."""
        return len(self.token_ids) or len(self.request.prompt) // 4

    def hashes(self, block_size: int, seed: int) -> list[int]:
        """Return the prompt's block hashes; computed once for replicas that hash alike."""
        key = block_size, seed
        if key not in self._hashes:
            self._hashes[key] = block_hashes(self.token_ids, block_size, seed)
        return self._hashes[key]

    async def next(self) -> pb.GenerateResponse:
        """Return what is new; the last response has `usage`.

        Raises:
            ApiError: it has failed; nothing follows.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            assert not self.is_ended, "nothing follows the response with usage"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pending, self._pending = self._pending, []
        return merge_responses(pending)

    def cancel(self) -> None:
        """Abort wherever it is. Harmless when it has ended."""
        if not self.is_ended:
            self.abort()
            self.fail(UnavailableError("the request was cancelled"))
        self._pending.clear()

    def push(self, response: pb.GenerateResponse, *, is_last: bool) -> None:
        """Hand over what a replica produced."""
        self.is_started = True
        self._pending.append(response)
        if is_last:
            self._end()
        elif len(self._pending) > MAX_PENDING:
            self._pending = [merge_responses(self._pending)]
        self._wake()

    def fail(self, error: ApiError) -> None:
        """End it; the reader still gets what came before."""
        self._error = error
        self._end()
        self._wake()

    def _end(self) -> None:
        self.is_ended = True
        self._hashes.clear()
        self.abort = _do_nothing

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _do_nothing() -> None:
    """There is nothing to abort before a generation is placed, nor after it has ended."""
