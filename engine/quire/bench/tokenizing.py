"""Counting tokens as the measured server does, and finding words that are one token each."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from quire_engine.errors import ConfigError

_WORDS = """
    time year people way day man thing woman life child world school state family student group
    country problem hand part place case week company system program question work government
    number night point home water room mother area money story fact month lot right study book
    eye job word business issue side kind head house service friend father power hour game line
    end member law car city community name president team minute idea body information back
    parent face others level office door health person art war history party result change
    morning reason research girl guy moment air teacher force education foot boy age policy
    music market sense nation plan college interest death experience effect use class control
    field development role effort rate heart drug show leader light voice wife police mind price
    report decision son view relationship town road arm difference value building action season
    society tax director position player record paper space ground form event official matter
    center couple site project base star table need court oil situation cost industry figure
    street image phone data picture practice piece land product doctor wall patient worker news
    test movie north love support technology step baby computer type attention film tree source
    hair look hope century evidence window culture chance brother energy period course summer
    plant opportunity term letter condition choice rule daughter south husband floor campaign
    material population call economy hospital church risk fire future bank west sport board
    subject officer rest behavior performance fight top goal second bed order author blood agency
    nature color store sound movement page race concern series language response animal factor
"""
CANDIDATES = tuple(_WORDS.split())


class TokenCounter(Protocol):
    """Counts the tokens of a text."""

    async def count(self, text: str, *, add_special_tokens: bool) -> int: ...

    async def ids(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        ...


class LocalCounter:
    """Uses a tokenizer.json on this machine or of the hub."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, name: str) -> "LocalCounter":
        """Load a tokenizer.json, a directory that holds one, or a model of the hub.

        Raises:
            ConfigError: there is none.
        """
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise ConfigError("--tokenizer needs: pip install tokenizers") from None
        path = Path(name)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            loaded = Tokenizer.from_file(str(file)) if file.is_file() else None
            return cls(loaded or Tokenizer.from_pretrained(name))
        # tokenizers raises plain Exception for whatever goes wrong in it.
        except Exception as error:
            raise ConfigError(f"no tokenizer at {name}: {error}") from error

    async def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    async def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class TokenCountError(Exception):
    """Prompts of exact lengths cannot be made with this tokenizer."""


async def one_token_words(
    counter: TokenCounter, candidates: Sequence[str] = CANDIDATES
) -> tuple[str, ...]:
    """Return the candidates that are one token after a space.

    Raises:
        TokenCountError: hardly any is.
    """
    # Two in a row, so that a token that a tokenizer puts before every text does not count.
    texts = [f" {word} {word}" for word in candidates]
    counts = await asyncio.gather(*(counter.count(t, add_special_tokens=False) for t in texts))
    words = tuple(w for w, count in zip(candidates, counts, strict=True) if count == 2)
    if len(words) < 16:
        raise TokenCountError(f"only {len(words)} words are one token each in this tokenizer")
    return words


async def num_special_tokens(counter: TokenCounter) -> int:
    """Return how many tokens the server puts around every prompt."""
    with_special, without = await asyncio.gather(
        counter.count(" time", add_special_tokens=True),
        counter.count(" time", add_special_tokens=False),
    )
    return with_special - without
