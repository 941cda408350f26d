"""Sending the requests of a benchmark, and timing the answers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from quire.bench.options import RequestConfig
from quire.bench.request import BenchRequest, BenchResult
from quire.openai_client import OpenAIClient, ServerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Sends one request to one path of a server and follows its stream."""

    client: OpenAIClient
    path: str
    model: str
    is_chat: bool
    request: RequestConfig

    def body(self, request: BenchRequest) -> dict[str, Any]:
        """Return the request's JSON."""
        if self.is_chat:
            prompt: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
            prompt["max_completion_tokens"] = request.output_len
        else:
            prompt = {"prompt": request.prompt, "max_tokens": request.output_len}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **prompt, **stream, **self.request.fields()}

    async def send(self, request: BenchRequest) -> BenchResult:
        """Return when the answer's parts arrived; an error is a result too."""
        body = self.body(request)
        result = BenchResult(prompt_len=request.prompt_len, start_time=time.perf_counter())
        try:
            async for chunk in self.client.stream(self.path, body):
                self._note(result, chunk)
        except ServerError as error:
            result.error = str(error)
            return result
        result.success = result.ttft > 0
        result.error = "" if result.success else "the answer has no text"
        return result

    def _note(self, result: BenchResult, chunk: dict[str, Any]) -> None:
        now = time.perf_counter()
        for choice in chunk.get("choices") or ():
            text = (choice.get("delta") or {}).get("content") if self.is_chat else choice["text"]
            # A chat opens with a chunk that only names the role: no token has arrived yet.
            if text is not None and not (self.is_chat and text == "" and not result.ttft):
                result.arrive(now, text)
                result.output_len = max(result.output_len, len(result.itl) + 1)
        if usage := chunk.get("usage"):
            result.output_len = int(usage["completion_tokens"])


async def run_load(
    sender: Sender,
    requests: Sequence[BenchRequest],
    times: NDArray[Any],
    *,
    max_concurrency: int | None,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[BenchResult], float]:
    """Send request i at times[i] seconds from the start; return the results and the duration.

    With `max_concurrency`, a request whose turn has come waits until another has ended; its time
    starts when it is sent.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    started_at = time.perf_counter()

    async def one(request: BenchRequest, at_s: float) -> BenchResult:
        await asyncio.sleep(max(started_at + at_s - time.perf_counter(), 0))
        async with gate:
            result = await sender.send(request)
        on_done()
        return result

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(request, float(at_s)))
            for request, at_s in zip(requests, times, strict=True)
        ]
    return [task.result() for task in tasks], time.perf_counter() - started_at
