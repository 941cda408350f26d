"""A small OpenAI server on a real socket, whose answers take the time that a test chooses."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "test/model"


@dataclass(slots=True, kw_only=True)
class OpenAIServer:
    """Streams one word per token; a word of a prompt is a token, and so is the start of text."""

    ttft_s: float = 0.0
    itl_s: float = 0.0
    words: tuple[str, ...] = ("one ", "two ", "three")
    fail_after: int | None = None
    """Streams end in an error after so many tokens."""
    refuse: Callable[[dict[str, Any]], str] = lambda body: ""
    """Says why a request is refused; empty: it is not."""
    num_special: int = 1
    has_tokenize: bool = True
    is_bytewise: bool = False
    """Every byte of a prompt is a token, not every word."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_running: int = 0
    max_running: int = 0
    url: str = ""

    @asynccontextmanager
    async def run(self) -> AsyncIterator["OpenAIServer"]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self.has_tokenize:
            app.router.add_post("/tokenize", self._tokenize)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body["prompt"]
        tokens = list(text.encode()) if self.is_bytewise else list(range(len(text.split())))
        count = len(tokens) + self.num_special * body["add_special_tokens"]
        return web.json_response({"count": count, "tokens": tokens})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, lambda text: {"text": text})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        def delta(text: str) -> dict[str, Any]:
            return {"delta": {"content": text}}

        return await self._stream(request, delta, opening={"delta": {"role": "assistant"}})

    async def _stream(
        self,
        request: web.Request,
        choice: Callable[[str], dict[str, Any]],
        opening: dict[str, Any] | None = None,
    ) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if reason := self.refuse(body):
            return web.json_response({"error": {"message": reason}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            if opening:
                await _event(response, {"choices": [opening]})
            await self._tokens(response, body, choice)
        finally:
            self.num_running -= 1
        return response

    async def _tokens(
        self,
        response: web.StreamResponse,
        body: dict[str, Any],
        choice: Callable[[str], dict[str, Any]],
    ) -> None:
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(self.words)
        words = self.words[:limit]
        for number, word in enumerate(words):
            await asyncio.sleep(self.ttft_s if number == 0 else self.itl_s)
            if number == self.fail_after:
                await _event(response, {"error": {"message": "the engine went away"}})
                return
            await _event(response, {"choices": [choice(word)]})
        await _event(response, {"choices": [], "usage": {"completion_tokens": len(words)}})
        await response.write(b"data: [DONE]\n\n")


async def _event(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())
