"""From OpenAI's fields to the engine's sampling parameters."""

from typing import Any

from quire_engine.rpc import engine_pb2
from quire_router.openai.fields import out_of_range
from quire_router.openai.requests import GenerationRequest

# Same name and meaning on both sides; what the client left out stays absent.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "logit_bias",
    "prompt_logprobs",
)


def sampling_params(
    request: GenerationRequest, *, n: int, max_tokens: int | None, logprobs: int | None
) -> engine_pb2.SamplingParams:
    """Return the sampling parameters of one generation."""
    fields: dict[str, Any] = {
        name: value
        for name in _SAME
        if (value := getattr(request, name)) is not None and value != [] and value != {}
    }
    if n != 1:
        fields["n"] = n
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    if logprobs is not None:
        fields["logprobs"] = logprobs
    return engine_pb2.SamplingParams(**fields)


def check_against_model(
    request: GenerationRequest, model: engine_pb2.ModelInfo, *, num_logprobs: int | None, param: str
) -> None:
    """Check what depends on the model: token ids against its vocabulary, counts of logprobs.

    Raises:
        BadRequestError: with the value and the model's limit.
    """
    _check_logprobs(param, num_logprobs, model.max_logprobs)
    _check_logprobs("prompt_logprobs", request.prompt_logprobs, model.max_logprobs)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        token_ids = getattr(request, name)
        if token_ids:
            check_vocabulary(name, max(token_ids), model.vocab_size)


def check_vocabulary(name: str, largest_token_id: int, vocab_size: int) -> None:
    """Check that a token id is in the vocabulary; 0 says that its size is not known.

    Raises:
        BadRequestError: it is not.
    """
    if vocab_size and largest_token_id >= vocab_size:
        limit = f"of token ids below {vocab_size}, the size of the model's vocabulary"
        raise out_of_range(name, largest_token_id, limit)


def _check_logprobs(name: str, num_logprobs: int | None, max_logprobs: int) -> None:
    if num_logprobs is None or max_logprobs == -1:
        return
    if num_logprobs == -1 or num_logprobs > max_logprobs:
        raise out_of_range(name, num_logprobs, f"in [0, {max_logprobs}] (--max-logprobs)")
