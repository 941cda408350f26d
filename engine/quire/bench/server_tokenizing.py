"""Counting tokens by asking the measured server."""

import asyncio
from typing import Any

from quire.bench.tokenizing import TokenCounter, TokenCountError
from quire.openai_client import OpenAIClient, ServerError

MAX_IN_FLIGHT = 16


class ServerCounter:
    """Asks the server's /tokenize."""

    def __init__(self, client: OpenAIClient, model: str) -> None:
        self._client = client
        self._model = model
        self._gate = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def count(self, text: str, *, add_special_tokens: bool) -> int:
        return int((await self._tokenize(text, add_special_tokens=add_special_tokens))["count"])

    async def ids(self, text: str) -> list[int]:
        return list((await self._tokenize(text, add_special_tokens=False))["tokens"])

    async def _tokenize(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": add_special_tokens}
        async with self._gate:
            return await self._client.post("/tokenize", body)


async def check_tokenize(counter: TokenCounter) -> None:
    """Raise TokenCountError when the server has no /tokenize."""
    try:
        await counter.count("time", add_special_tokens=False)
    except ServerError as error:
        raise TokenCountError(
            f"the server's /tokenize does not answer ({error}); name a --tokenizer"
        ) from error
