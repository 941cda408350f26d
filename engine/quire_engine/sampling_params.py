"""How to choose the next token, when to stop, and what to report; fields and defaults as vLLM's."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Self

from quire_engine.errors import InvalidRequestError
from quire_engine.field_types import (
    Check,
    boolean,
    integer,
    integers,
    number,
    optional,
    string_or_strings,
    strings,
    token_biases,
)

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 1e-2
MAX_N = 16384
MAX_STOP_STRINGS = 64


class RequestOutputKind(IntEnum):
    """What each output of a stream holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last output."""
    FINAL_ONLY = 2
    """Nothing until the end, then everything."""


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request.

    Raises:
        InvalidRequestError: a value out of range; the message names the value and the limit.
    """

    n: int = 1
    """Completions to generate for the prompt."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    """0 is greedy; anything in (0, 0.01) is raised to 0.01."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 keeps the whole vocabulary."""
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    """Text that ends the completion; `stop_strings` has it as a list."""
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None generates until the context is full."""
    min_tokens: int = 0
    logprobs: int | None = None
    """Top alternatives per generated token; 0 reports the chosen one alone, -1 the vocabulary."""
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_reading_prefix_cache: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._normalise()
        self._check_distribution()
        self._check_lengths()
        self._check_lists()
        if self.is_greedy:
            self._force_greedy()

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @classmethod
    def from_optional(cls, **fields: Any) -> Self:
        """Build from fields of which None means "the default"."""
        return cls(**{name: value for name, value in fields.items() if value is not None})

    def clone(self, **changes: Any) -> "SamplingParams":
        return replace(self, **changes)

    def _check_types(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            checked = check(name, value)
            if checked is not value:
                setattr(self, name, checked)
        try:
            self.output_kind = RequestOutputKind(self.output_kind)
        except ValueError:
            raise InvalidRequestError(
                f"output_kind must be a RequestOutputKind, got {self.output_kind!r}", "output_kind"
            ) from None

    def _normalise(self) -> None:
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        if GREEDY_BELOW <= self.temperature < MIN_TEMPERATURE:
            logger.warning("temperature raised from=%g to=%g", self.temperature, MIN_TEMPERATURE)
            self.temperature = MIN_TEMPERATURE

    def _check_distribution(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError(f"top_p must be in (0, 1], got {self.top_p}", "top_p")
        if self.top_k < 0:
            raise InvalidRequestError(
                f"top_k must be 0 or -1 (off) or at least 1, got {self.top_k}", "top_k"
            )
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0.0):
            raise InvalidRequestError(
                f"repetition_penalty must be greater than 0, got {self.repetition_penalty}",
                "repetition_penalty",
            )

    def _check_lengths(self) -> None:
        _check_range("n", self.n, 1, MAX_N)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequestError(
                f"max_tokens must be at least 1, got {self.max_tokens}", "max_tokens"
            )
        if self.min_tokens < 0:
            raise InvalidRequestError(
                f"min_tokens must be at least 0, got {self.min_tokens}", "min_tokens"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}",
                "min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < -1:
                raise InvalidRequestError(f"{name} must be -1 or at least 0, got {value}", name)

    def _check_lists(self) -> None:
        stop = self.stop_strings
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(stop)}", "stop"
            )
        if any(not string for string in stop):
            raise InvalidRequestError("stop strings must not be empty", "stop")
        if stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True", "stop")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must not be empty", "allowed_token_ids")
        if self.bad_words is not None and any(not word for word in self.bad_words):
            raise InvalidRequestError("bad_words must not hold an empty string", "bad_words")

    def _force_greedy(self) -> None:
        if self.n > 1:
            raise InvalidRequestError(
                f"n must be 1 when temperature is 0, since all would be equal; got {self.n}", "n"
            )
        self.temperature, self.top_p, self.top_k, self.min_p = 0.0, 1.0, 0, 0.0


_CHECKS: dict[str, Check] = {
    "n": integer,
    "presence_penalty": number,
    "frequency_penalty": number,
    "repetition_penalty": number,
    "temperature": number,
    "top_p": number,
    "top_k": integer,
    "min_p": number,
    "seed": optional(integer),
    "stop": optional(string_or_strings),
    "stop_token_ids": optional(integers),
    "ignore_eos": boolean,
    "max_tokens": optional(integer),
    "min_tokens": integer,
    "logprobs": optional(integer),
    "prompt_logprobs": optional(integer),
    "detokenize": boolean,
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "include_stop_str_in_output": boolean,
    "logit_bias": optional(token_biases),
    "allowed_token_ids": optional(integers),
    "bad_words": optional(strings),
    "skip_reading_prefix_cache": boolean,
}


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN too
        raise InvalidRequestError(f"{name} must be in [{low}, {high}], got {value}", name)


def with_defaults(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> SamplingParams:
    """Build parameters from `fields`, taking what is absent from a model's generation config."""
    return SamplingParams.from_optional(**{**defaults, **fields})
