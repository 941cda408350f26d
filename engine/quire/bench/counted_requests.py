"""Requests whose prompts are texts, counted with a tokenizer of the server or of this process."""

import asyncio

import numpy as np

from quire.bench.datasets import (
    IdChoicePool,
    TextRecord,
    WordPool,
    is_usable,
    read_records,
    repeat_to,
    synthetic_requests,
)
from quire.bench.options import DatasetConfig
from quire.bench.request import BenchRequest
from quire.bench.tokenizing import (
    CANDIDATES,
    TokenCounter,
    TokenCountError,
    num_special_tokens,
    one_token_words,
)
from quire_engine.errors import ConfigError


async def word_requests(
    config: DatasetConfig, counter: TokenCounter, rng: np.random.Generator, *, is_chat: bool
) -> list[BenchRequest]:
    """Make random prompts of words, and check each one's number of tokens with the tokenizer.

    For a chat the tokens of the template come on top, as in vLLM's benchmark. Where hardly any word
    is one token, completions are asked for with token ids.
    """
    try:
        words = await one_token_words(counter)
    except TokenCountError:
        if is_chat:
            raise
        ids = sorted(set(await counter.ids(" ".join(CANDIDATES))))
        return synthetic_requests(config, IdChoicePool(tuple(ids)), rng)
    num_special = 0 if is_chat else await num_special_tokens(counter)
    requests = synthetic_requests(config, WordPool(words), rng, num_special=num_special)
    counts = await asyncio.gather(
        *(counter.count(str(r.prompt), add_special_tokens=not is_chat) for r in requests)
    )
    wrong = [
        (request.prompt_len, count)
        for request, count in zip(requests, counts, strict=True)
        if request.prompt_len != count
    ]
    if wrong:
        made, counted = wrong[0]
        raise TokenCountError(
            f"{len(wrong)} of {len(requests)} prompts have another length than they were made "
            f"with (the first: {made}, but the tokenizer counts {counted})"
        )
    return requests


async def text_requests(
    config: DatasetConfig, counter: TokenCounter, rng: np.random.Generator
) -> list[BenchRequest]:
    """Turn the records of a file into requests, starting over when it has too few."""
    found: list[BenchRequest] = []
    records = read_records(config, rng)
    # Many at a time, since a server is asked for each count; but not a whole file for ten prompts.
    for start in range(0, len(records), 256):
        batch = records[start : start + 256]
        requests = await asyncio.gather(*(_text_request(config, r, counter) for r in batch))
        found += [request for request in requests if request is not None]
        if len(found) >= config.num_prompts:
            break
    if not found:
        raise ConfigError(f"dataset_path {config.dataset_path} holds no prompt of a usable length")
    return repeat_to(found, config.num_prompts)


async def _text_request(
    config: DatasetConfig, record: TextRecord, counter: TokenCounter
) -> BenchRequest | None:
    prompt_len = await counter.count(record.prompt, add_special_tokens=True)
    if config.dataset_name == "custom":
        output_len = config.output_len or record.output_len or config.custom_output_len
        return BenchRequest(prompt=record.prompt, prompt_len=prompt_len, output_len=output_len)
    fixed = config.output_len or config.sharegpt_output_len
    completion = record.completion or ""
    output_len = fixed or await counter.count(completion, add_special_tokens=False)
    if not is_usable(prompt_len, output_len, is_output_fixed=fixed is not None):
        return None
    return BenchRequest(prompt=record.prompt, prompt_len=prompt_len, output_len=output_len)
