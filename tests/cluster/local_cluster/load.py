"""Chat requests in the background, as an application would send them, and what became of them."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

import openai

MAX_REQUESTS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request."""

    started_at: float
    took_s: float
    text: str
    error: str = ""


class Load:
    """A bounded number of clients that chat until the `with` block ends.

    A request is sent once: what fails is seen, not repeated. Clients rest between requests, because
    an engine that starts meanwhile needs the same two cores.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        num_clients: int = 2,
        max_tokens: int = 24,
        rest_s: float = 0.25,
    ) -> None:
        self._address = address
        self._model = model
        self._num_clients = num_clients
        self._max_tokens = max_tokens
        self._rest_s = rest_s
        self._answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def answers(self) -> list[Answer]:
        """Every request that has ended."""
        return list(self._answers)

    @property
    def failures(self) -> list[Answer]:
        """Those that got no whole answer."""
        return [answer for answer in self._answers if answer.error]

    def num_answered(self) -> int:
        """Count the requests that got a whole answer."""
        return sum(not answer.error for answer in self._answers)

    async def _run(self) -> None:
        clients: list[Coroutine[Any, Any, None]] = [self._chat(n) for n in range(self._num_clients)]
        await asyncio.gather(*clients)

    async def _chat(self, number: int) -> None:
        timeout = openai.Timeout(60, connect=30)
        async with openai.AsyncOpenAI(
            base_url=f"http://{self._address}/v1", api_key="none", max_retries=0, timeout=timeout
        ) as client:
            while not self._stop.is_set() and len(self._answers) < MAX_REQUESTS:
                await self._ask(client, f"Client {number} asks: what is the capital of France?")
                await asyncio.sleep(self._rest_s)

    async def _ask(self, client: openai.AsyncOpenAI, question: str) -> None:
        started_at, text, error = time.monotonic(), "", ""
        try:
            stream = await client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": question}],
                max_tokens=self._max_tokens,
                temperature=0,
                stream=True,
            )
            finished = False
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                finished = finished or chunk.choices[0].finish_reason is not None
            if not finished:
                error = "the stream ended without a finish_reason"
        except Exception as caught:  # whatever went wrong is what tests look at
            error = f"{type(caught).__name__}: {caught}"
        took_s = time.monotonic() - started_at
        self._answers.append(Answer(started_at=started_at, took_s=took_s, text=text, error=error))
