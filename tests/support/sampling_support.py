"""A slow sampler for one row, as plain as the words that describe it, and rows to compare with."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from quire_engine.runner.plan import AdmittedSequence
from quire_engine.sampling_params import SamplingParams

NEVER = float("-inf")
MASK = 0xFFFFFFFF


def sequence(
    seq_id: int = 0,
    *,
    prompt: Sequence[int] = (0,),
    output: Sequence[int] = (),
    bad_words: Sequence[Sequence[int]] = (),
    **params: Any,
) -> AdmittedSequence:
    return AdmittedSequence(
        seq_id=seq_id,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        block_ids=[],
        num_computed_tokens=0,
        params=SamplingParams(**params),
        bad_words_token_ids=[list(word) for word in bad_words],
    )


def reference_token(
    logits: Sequence[float], sequence: AdmittedSequence, stop_ids: Sequence[int], seed: int
) -> int:
    """Return the token that a row with this history draws; `seed` is its own or the one given."""
    params = sequence.params
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    x = edited(list(logits), params, prompt, output, sequence.bad_words_token_ids, stop_ids)
    if max(x) == NEVER:
        x = allowed_only(list(logits), params)
    if params.is_greedy:
        return x.index(max(x))
    x = truncated([value / params.temperature for value in x], params)
    sums = [
        value + noise(seed, len(output), token) if value > NEVER else NEVER
        for token, value in enumerate(x)
    ]
    return sums.index(max(sums))


def allowed_only(x: list[float], params: SamplingParams) -> list[float]:
    allowed = params.allowed_token_ids or range(len(x))
    return [value if token in allowed else NEVER for token, value in enumerate(x)]


def edited(
    x: list[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    bad_words: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
) -> list[float]:
    x = allowed_only(x, params)
    for *before, last in bad_words:
        if list(output[len(output) - len(before) :]) == before and len(output) >= len(before):
            x[last] = NEVER
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    if len(output) < params.min_tokens:
        for token in stop_ids:
            x[token] = NEVER
    counts = Counter(output)
    for token in {*prompt, *output}:
        penalty = params.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token, count in counts.items():
        x[token] -= params.frequency_penalty * count + params.presence_penalty
    return x


def truncated(x: list[float], params: SamplingParams) -> list[float]:
    best = max(x)
    if params.min_p > 0:
        x = [value if value >= best + math.log(params.min_p) else NEVER for value in x]
    order = sorted(range(len(x)), key=lambda token: (-x[token], token))
    kept = [token for token in order if x[token] > NEVER][: params.top_k or None]
    weights = {token: math.exp(x[token] - best) for token in kept}
    limit, before = params.top_p * sum(weights.values()), 0.0
    for token in kept:
        if params.top_p < 1.0 and before >= limit:
            del weights[token]
        else:
            before += weights[token]
    return [value if token in weights else NEVER for token, value in enumerate(x)]


def mix(value: int) -> int:
    value &= MASK
    value = (value ^ (value >> 16)) * 0x85EBCA6B & MASK
    value = (value ^ (value >> 13)) * 0xC2B2AE35 & MASK
    return value ^ (value >> 16)


def hashed(seed: int, position: int, token: int) -> int:
    low, high = seed & MASK, (seed >> 32) & MASK
    keys = [mix(mix(mix(low ^ c) ^ high) ^ mix(position + c)) for c in (0x9E3779B9, 0x7F4A7C15)]
    value = (token * 0x9E3779B1 + keys[0]) & MASK
    value = (value ^ (value >> 16)) * 0x85EBCA6B + keys[1] & MASK
    value = (value ^ (value >> 13)) * 0xC2B2AE35 & MASK
    return value ^ (value >> 16)


def noise(seed: int, position: int, token: int) -> float:
    v = np.float32(hashed(seed, position, token) & 0x7FFFFFFF) + np.float32(0.5)
    v = min(v * np.float32(2.0**-31), np.float32(1 - 2.0**-24))
    return -math.log(-math.log1p(-float(v)))
