"""What a request must satisfy before it may reach the core: nothing there checks again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

from quire_engine.errors import InvalidRequestError, PromptTooLongError
from quire_engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a model can take."""

    max_model_len: int
    """Longest prompt and completion together, in tokens."""
    vocab_size: int
    """Rows of the output layer: token ids are below it."""
    max_logprobs: int = 20
    """Most logprobs per position; -1: no limit."""


def check_prompt(token_ids: Sequence[int], limits: ModelLimits) -> None:
    """Check the prompt's token ids.

    Raises:
        PromptTooLongError: no room is left for even one token.
        InvalidRequestError: empty, or a token id that the model does not have.
    """
    if not token_ids:
        raise InvalidRequestError("the prompt is empty: it needs at least one token", "prompt")
    if len(token_ids) >= limits.max_model_len:
        raise PromptTooLongError(len(token_ids), limits.max_model_len)
    if min(token_ids) < 0 or max(token_ids) >= limits.vocab_size:
        _check_range("prompt", token_ids, limits.vocab_size)


def checked_integers(name: str, values: Iterable[object]) -> list[int]:
    """Return token ids as a list of plain integers; those of numpy, say, are converted.

    Raises:
        InvalidRequestError: one is no integer.
    """
    token_ids: list[int] = []
    for token_id in values:
        if isinstance(token_id, bool) or not isinstance(token_id, Integral):
            raise InvalidRequestError(
                f"{name} must hold token ids, got {token_id!r} of type {type(token_id).__name__}",
                name,
            )
        token_ids.append(int(token_id))
    return token_ids


def check_params(params: SamplingParams, limits: ModelLimits, *, has_tokenizer: bool) -> None:
    """Check what depends on the model; the rest `SamplingParams` has checked itself.

    Raises:
        InvalidRequestError: a value out of the model's range, or in need of a tokenizer.
    """
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(name, getattr(params, name), limits)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        if token_ids := getattr(params, name):
            _check_range(name, token_ids, limits.vocab_size)
    if has_tokenizer:
        return
    for name in ("stop", "bad_words"):
        if getattr(params, name):
            raise InvalidRequestError(
                f"{name} needs a tokenizer, and this engine runs without one (skip_tokenizer_init)",
                name,
            )


def _check_logprobs(name: str, value: int | None, limits: ModelLimits) -> None:
    if value is None or limits.max_logprobs == -1:
        return
    if value == -1 and limits.vocab_size > limits.max_logprobs:
        raise InvalidRequestError(
            f"{name}=-1 asks for the whole vocabulary; at most {limits.max_logprobs} are allowed "
            "(--max-logprobs)",
            name,
        )
    if value > limits.max_logprobs:
        raise InvalidRequestError(
            f"{name} must be at most {limits.max_logprobs} (--max-logprobs), got {value}", name
        )


def _check_range(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{name} holds token id {token_id}; this model's are 0 to {vocab_size - 1}", name
            )
