"""From running generations to an answer: a stream of server-sent events, or one body."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Protocol

from quire_engine.rpc.engine_pb2 import GenerateResponse
from quire_router.exchange import Exchange
from quire_router.generation import Generation
from quire_router.http_metrics import HttpMetrics
from quire_router.openai.envelope import DONE, chunk_tail
from quire_router.openai.requests import StreamOptions
from quire_router.openai.results import Result, Usage


class ChunkFormat(Protocol):
    """Formats the chunks of one answer."""

    def chunks(self, prompt_index: int, response: GenerateResponse, tail: bytes) -> bytes:
        """Return the events of what is new, each ending in `tail`."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        ...


class BodyFormat(Protocol):
    """Formats one answer as a whole."""

    def whole(self, results: list[Result], usage: Usage) -> bytes:
        """Return the response body."""
        ...


async def send_stream(
    exchange: Exchange,
    generations: Sequence[Generation],
    format_: ChunkFormat,
    options: StreamOptions,
    metrics: HttpMetrics,
) -> None:
    """Stream the generations to the client, one send per engine step; abort what is left over.

    The status line waits for the first response, so that what fails before has its own status.
    """
    usage = Usage()
    tail = chunk_tail(has_usage=options.include_usage)
    clock = _TokenClock(exchange, metrics)
    try:
        async with aclosing(_merged(generations)) as responses:
            async for index, response in responses:
                usage.add(response)
                clock.tick(response)
                if options.continuous_usage_stats:
                    tail = chunk_tail(usage)
                if data := format_.chunks(index, response, tail):
                    await exchange.send_event(data)
        clock.judge(usage)
        closing = format_.closing(usage) if options.include_usage else b""
        await exchange.end_stream(closing + DONE)
    finally:
        _finish(generations, usage, metrics)


async def send_whole(
    exchange: Exchange,
    generations: Sequence[Generation],
    results: list[Result],
    format_: BodyFormat,
    metrics: HttpMetrics,
) -> None:
    """Send the answer once every generation has ended; abort all when one fails."""
    usage = Usage()
    first_token_s = generation_s = 0.0
    num_completions = 0
    try:
        async with aclosing(_merged(generations)) as responses:
            async for index, response in responses:
                usage.add(response)
                results[index].add(response)
                # Of an answer that comes as a whole, only the engine knows when it began.
                first_token_s = max(first_token_s, response.usage.time_to_first_token_s)
                generation_s = max(generation_s, response.usage.generation_s)
                num_completions += len(response.outputs)
        metrics.judge(
            first_token_s=first_token_s,
            generation_s=generation_s,
            num_tokens=usage.num_completion_tokens // max(num_completions, 1),
        )
        await exchange.send_json(format_.whole(results, usage))
    finally:
        _finish(generations, usage, metrics)


class _TokenClock:
    """Measures when tokens come."""

    def __init__(self, exchange: Exchange, metrics: HttpMetrics) -> None:
        self._metrics = metrics
        self._started_at = self._first_at = self._last_at = exchange.started_at
        self._has_begun = False
        self._completions: set[int] = set()

    def tick(self, response: GenerateResponse) -> None:
        if not response.outputs:
            return
        now = time.monotonic()
        elapsed_s, self._last_at = now - self._last_at, now
        self._completions.update(output.index for output in response.outputs)
        if self._has_begun:
            self._metrics.inter_token_s.observe(elapsed_s)
        else:
            self._has_begun = True
            self._first_at = now
            self._metrics.first_token_s.observe(elapsed_s)

    def judge(self, usage: Usage) -> None:
        """Count the request by the targets, now that it has ended well."""
        self._metrics.judge(
            first_token_s=self._first_at - self._started_at,
            generation_s=self._last_at - self._first_at,
            num_tokens=usage.num_completion_tokens // max(len(self._completions), 1),
        )


def _finish(generations: Iterable[Generation], usage: Usage, metrics: HttpMetrics) -> None:
    for generation in generations:
        generation.cancel()
    metrics.prompt_tokens.inc(usage.num_prompt_tokens)
    metrics.cached_tokens.inc(usage.num_cached_tokens)
    metrics.completion_tokens.inc(usage.num_completion_tokens)


async def _merged(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, GenerateResponse], None]:
    """Yield the responses of all generations as they come, each with its generation's index."""
    if len(generations) > 1:
        async for item in _merged_many(generations):
            yield item
        return
    while True:
        response = await generations[0].next()
        yield 0, response
        if response.HasField("usage"):
            return


async def _merged_many(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, GenerateResponse], None]:
    tasks = {
        asyncio.ensure_future(generation.next()): index
        for index, generation in enumerate(generations)
    }
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, response = tasks.pop(task), task.result()
                if not response.HasField("usage"):
                    tasks[asyncio.ensure_future(generations[index].next())] = index
                yield index, response
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
