"""Prompts of exact lengths. Pure, but for reading files.

A pool of tokens is either ids, for the engine in this process, or words that are one token each,
for a server: any row of words is then a text of as many tokens.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from quire.bench.options import DatasetConfig
from quire.bench.request import BenchRequest
from quire_engine.errors import ConfigError

MIN_LEN = 4
MAX_PROMPT_LEN = 1024
MAX_TOTAL_LEN = 2048
"""Conversations of sharegpt outside these limits are left out, as in vLLM's benchmark."""


class TokenPool(Protocol):
    """Draws random tokens and makes prompts of them."""

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[int]: ...

    def prompt(self, tokens: Sequence[int]) -> str | list[int]: ...


@dataclass(frozen=True, slots=True)
class IdPool:
    """Token ids in [low, high)."""

    high: int
    low: int = 0

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        return [int(token) for token in rng.integers(self.low, self.high, num_tokens)]

    def prompt(self, tokens: Sequence[int]) -> str | list[int]:
        return list(tokens)


@dataclass(frozen=True, slots=True)
class IdChoicePool:
    """Chosen token ids, for tokenizers in which hardly any word is one token."""

    ids: tuple[int, ...]

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        return [int(token) for token in rng.choice(self.ids, num_tokens)]

    def prompt(self, tokens: Sequence[int]) -> str | list[int]:
        return list(tokens)


@dataclass(frozen=True, slots=True)
class WordPool:
    """Words, each of which is one token where it follows a space."""

    words: tuple[str, ...]

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        return [int(token) for token in rng.integers(0, len(self.words), num_tokens)]

    def prompt(self, tokens: Sequence[int]) -> str | list[int]:
        return "".join(f" {self.words[token]}" for token in tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """A prompt out of a file; `completion` and `output_len` where the file has them."""

    prompt: str
    completion: str | None = None
    output_len: int | None = None


def synthetic_requests(
    config: DatasetConfig, pool: TokenPool, rng: np.random.Generator, *, num_special: int = 0
) -> list[BenchRequest]:
    """Make the requests of a dataset that needs no file.

    `num_special` tokens, which the server adds to every prompt, are left out of the random ones.
    """
    if config.dataset_name == "prefix_repetition":
        return _prefix_repetition(config, pool, rng)
    shared = pool.draw(config.random_prefix_len, rng)
    input_len = max((config.input_len or config.random_input_len) - num_special, 1)
    output_len = config.output_len or config.random_output_len
    input_lens = draw_lengths(input_len, config, rng)
    output_lens = draw_lengths(output_len, config, rng)
    return [
        _request(pool, [*shared, *pool.draw(num_input, rng)], num_output, num_special)
        for num_input, num_output in zip(input_lens, output_lens, strict=True)
    ]


def draw_lengths(mean: int, config: DatasetConfig, rng: np.random.Generator) -> list[int]:
    """Draw one length per prompt, evenly within random_range_ratio around the mean."""
    low = max(math.floor(mean * (1 - config.random_range_ratio)), 1)
    high = math.ceil(mean * (1 + config.random_range_ratio))
    return [int(length) for length in rng.integers(low, high + 1, config.num_prompts)]


def _prefix_repetition(
    config: DatasetConfig, pool: TokenPool, rng: np.random.Generator
) -> list[BenchRequest]:
    num_prefixes = config.prefix_repetition_num_prefixes
    prefixes = [pool.draw(config.prefix_repetition_prefix_len, rng) for _ in range(num_prefixes)]
    output_len = config.output_len or config.prefix_repetition_output_len
    suffix_len = config.prefix_repetition_suffix_len
    # vLLM gives each prefix the same number of requests; so the last ones fill up from the front.
    order = rng.permutation([number % num_prefixes for number in range(config.num_prompts)])
    return [
        _request(pool, prefixes[number] + pool.draw(suffix_len, rng), output_len, 0)
        for number in order
    ]


def _request(
    pool: TokenPool, tokens: Sequence[int], output_len: int, num_special: int
) -> BenchRequest:
    return BenchRequest(
        prompt=pool.prompt(tokens), prompt_len=len(tokens) + num_special, output_len=output_len
    )


def read_records(config: DatasetConfig, rng: np.random.Generator) -> list[TextRecord]:
    """Read the records of a file, in random order for sharegpt.

    Raises:
        ConfigError: there is no such file, or it has another form.
    """
    path = Path(config.dataset_path or "")
    try:
        text = path.read_text()
        records = _sharegpt(text) if config.dataset_name == "sharegpt" else _custom(text)
    except OSError as error:
        raise ConfigError(f"dataset_path {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"dataset_path {path}: no {config.dataset_name} file: {error}") from None
    if not records:
        raise ConfigError(f"dataset_path {path} holds no prompt")
    if config.dataset_name == "sharegpt":
        return [records[int(index)] for index in rng.permutation(len(records))]
    return records


def _sharegpt(text: str) -> list[TextRecord]:
    turns = [entry["conversations"] for entry in json.loads(text)]
    return [
        TextRecord(prompt=turn[0]["value"], completion=turn[1]["value"])
        for turn in turns
        if len(turn) >= 2
    ]


def _custom(text: str) -> list[TextRecord]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [TextRecord(prompt=row["prompt"], output_len=row.get("output_tokens")) for row in rows]


def is_usable(prompt_len: int, output_len: int, *, is_output_fixed: bool) -> bool:
    """Whether a conversation of sharegpt is neither too short nor too long to be used."""
    is_long_enough = prompt_len >= MIN_LEN and (is_output_fixed or output_len >= MIN_LEN)
    return (
        is_long_enough and prompt_len <= MAX_PROMPT_LEN and prompt_len + output_len <= MAX_TOTAL_LEN
    )


def repeat_to(requests: Sequence[BenchRequest], num_requests: int) -> list[BenchRequest]:
    """Take the first `num_requests`, starting over where there are fewer."""
    return [requests[index % len(requests)] for index in range(num_requests)]
