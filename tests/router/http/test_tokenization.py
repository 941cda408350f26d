"""Text to tokens, and the cache in between."""

import asyncio
import threading
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer

from http_support import tokenizer_files
from quire_router import tokenization as module
from quire_router.errors import UnsupportedError
from quire_router.http_metrics import HttpMetrics
from quire_router.tokenization import TokenCache, Tokenization, entry_bytes


def tokenization(cache_bytes: int = 1 << 20) -> Tokenization:
    metrics = HttpMetrics(CollectorRegistry())
    return Tokenization(num_threads=2, cache_bytes=cache_bytes, metrics=metrics)


def test_the_text_unused_for_longest_is_forgotten_first() -> None:
    ids = array("I", [1, 2])
    cache = TokenCache(3 * entry_bytes("a", ids))
    for text in ("a", "b", "c"):
        cache.put(text, False, ids)

    cache.get("a", False)
    cache.put("d", False, ids)

    assert cache.get("b", False) is None
    assert all(cache.get(text, False) is ids for text in ("a", "c", "d"))


def test_special_tokens_make_a_different_entry() -> None:
    cache = TokenCache(1 << 20)
    cache.put("a", True, array("I", [1]))

    assert cache.get("a", False) is None


def test_what_is_larger_than_the_cache_does_not_empty_it() -> None:
    ids = array("I", [1])
    cache = TokenCache(2 * entry_bytes("a", ids))
    cache.put("a", False, ids)

    cache.put("b" * 10_000, False, ids)

    assert cache.get("a", False) is ids


@given(st.lists(st.tuples(st.text(max_size=50), st.integers(0, 20))))
def test_the_cache_never_exceeds_its_bytes(texts: list[tuple[str, int]]) -> None:
    cache = TokenCache(2000)

    for text, num_tokens in texts:
        cache.put(text, False, array("I", [0] * num_tokens))
        assert 0 <= cache.num_bytes <= 2000


async def test_short_and_long_texts_come_out_the_same() -> None:
    tokens = tokenization()
    await tokens.use(tokenizer_files())

    for text in ("hé", "hé" * 1000):
        assert bytes(list(await tokens.encode(text, add_special_tokens=True))) == text.encode()
        assert await tokens.decode(list(text.encode())) == text
    tokens.close()


async def test_the_loop_turns_while_each_of_many_long_texts_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = tokenization(cache_bytes=0)
    await tokens.use(tokenizer_files())
    loop, encode = asyncio.get_running_loop(), module._encode
    turns: list[bool] = []

    def encode_when_the_loop_has_turned(
        tokenizer: Tokenizer, text: str, add_special_tokens: bool
    ) -> Sequence[int]:
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        turns.append(turned.wait(30.0))
        return encode(tokenizer, text, add_special_tokens)

    monkeypatch.setattr(module, "_encode", encode_when_the_loop_has_turned)
    await asyncio.gather(
        *(
            tokens.encode(f"{number} " + "text " * 20_000, add_special_tokens=True)
            for number in range(4)
        )
    )
    tokens.close()

    assert turns == [True] * 4


async def test_a_new_tokenizer_forgets_the_old_ones_ids() -> None:
    tokens = tokenization()
    await tokens.use(tokenizer_files())
    await tokens.encode("a", add_special_tokens=False)

    await tokens.use(tokenizer_files(sha256="none", data=b""))

    with pytest.raises(UnsupportedError):
        await tokens.encode("a", add_special_tokens=False)
    tokens.close()
