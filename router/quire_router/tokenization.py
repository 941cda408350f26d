"""Text to token ids and back, off the event loop, with a cache of what was seen before.

`tokenizers` releases the interpreter lock while it works, so long prompts go to a thread pool; for
short ones the hop would cost more than the work.
"""

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from tokenizers import Tokenizer

from quire_router.errors import UnsupportedError
from quire_router.generation import TokenizerFiles
from quire_router.http_metrics import HttpMetrics

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

INLINE_CHARS = 256
ENTRY_OVERHEAD_BYTES = 300
"""Of one cache entry besides its text and ids: objects, dictionary slot, list links."""


class TokenCache:
    """Least recently used texts and their token ids, bounded by the bytes that they take."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[tuple[str, bool], Sequence[int]] = OrderedDict()

    def get(self, text: str, special: bool) -> Sequence[int] | None:
        """Return the token ids of a text, if it was seen before."""
        token_ids = self._entries.get((text, special))
        if token_ids is not None:
            self._entries.move_to_end((text, special))
        return token_ids

    def put(self, text: str, special: bool, token_ids: Sequence[int]) -> None:
        """Keep the token ids of a text, and forget the texts unused for longest."""
        size = entry_bytes(text, token_ids)
        if size > self._max_bytes or (text, special) in self._entries:
            return
        self._entries[text, special] = token_ids
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            (old, _), old_ids = self._entries.popitem(last=False)
            self._num_bytes -= entry_bytes(old, old_ids)

    def clear(self) -> None:
        self._entries.clear()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes


def entry_bytes(text: str, token_ids: Sequence[int]) -> int:
    """Return about how much memory a cache entry takes."""
    return text.__sizeof__() + 4 * len(token_ids) + ENTRY_OVERHEAD_BYTES


class Tokenization:
    """The tokenizer that the replicas use, rebuilt when they bring another."""

    def __init__(self, *, num_threads: int, cache_bytes: int, metrics: HttpMetrics) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._cache = TokenCache(cache_bytes)
        self._metrics = metrics
        self._loading = asyncio.Lock()
        self._sha256 = ""
        self._tokenizer: Tokenizer | None = None
        self.max_token_chars = 1
        """Length of the longest token of the vocabulary."""

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def use(self, files: TokenizerFiles) -> None:
        """Make sure that `files` is the tokenizer in use; free when it is already."""
        if files.sha256 == self._sha256:
            return
        async with self._loading:
            if files.sha256 == self._sha256:
                return  # another request has loaded it meanwhile
            if files.data:
                self._tokenizer, self.max_token_chars = await self._in_thread(_load, files.data)
            else:
                self._tokenizer = None
            self._sha256 = files.sha256
            self._cache.clear()

    async def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Return the token ids of a text."""
        tokenizer = self._loaded()
        cached = self._cache.get(text, add_special_tokens)
        self._metrics.tokenizer_cache(hit=cached is not None)
        if cached is not None:
            return cached
        start = time.perf_counter()
        if len(text) <= INLINE_CHARS:
            token_ids = _encode(tokenizer, text, add_special_tokens)
        else:
            token_ids = await self._in_thread(_encode, tokenizer, text, add_special_tokens)
        self._metrics.tokenize_s.observe(time.perf_counter() - start)
        self._cache.put(text, add_special_tokens, token_ids)
        return token_ids

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        tokenizer = self._loaded()
        ids = list(token_ids)
        text: str = await self._in_thread(tokenizer.decode, ids, skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone."""
        return str(self._loaded().decode([token_id], skip_special_tokens=False))

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it; empty when it has no such id."""
        return self._loaded().id_to_token(token_id) or ""

    def _loaded(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UnsupportedError("the model is served without a tokenizer; send token ids")
        return self._tokenizer

    async def _in_thread(
        self, function: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)


def _load(data: bytes) -> tuple[Tokenizer, int]:
    tokenizer = Tokenizer.from_str(data.decode())
    # Some files carry the settings of a training run; serving cuts or pads nothing.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, max(map(len, tokenizer.get_vocab()), default=1)


def _encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> Sequence[int]:
    return array("I", tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
