"""How much of the model's context a request may use. Pure."""

from collections.abc import Sequence

from quire_router.errors import BadRequestError, ContextLengthError
from quire_router.openai.fields import out_of_range
from quire_router.openai.requests import GenerationRequest


def output_limit(
    num_prompt_tokens: int,
    requested: int | None,
    *,
    max_model_len: int,
    param: str,
    limit_param: str = "max_tokens",
) -> int:
    """Return how many tokens can be generated: what was requested, or what there is room for.

    Raises:
        ContextLengthError: they do not fit; `param` is the field of the prompt, `limit_param` that
            of the request for a length.
    """
    room = max_model_len - num_prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"this model's maximum context length is {max_model_len} tokens; the prompt has "
            f"{num_prompt_tokens} tokens and leaves no room for a completion",
            param=param,
        )
    if requested is not None and requested > room:
        raise ContextLengthError(
            f"this model's maximum context length is {max_model_len} tokens; the prompt has "
            f"{num_prompt_tokens}, so that {limit_param} can be at most {room}, not {requested}",
            param=limit_param,
        )
    return room if requested is None else requested


def check_text_length(text: str, *, max_model_len: int, max_token_chars: int, param: str) -> None:
    """Refuse a text that cannot fit however it is tokenized, before that takes long.

    Raises:
        ContextLengthError: even the longest tokens would be too many.
    """
    at_least = -(-len(text) // max(1, max_token_chars))
    if at_least > max_model_len:
        raise ContextLengthError(
            f"this model's maximum context length is {max_model_len} tokens; the prompt has "
            f"{at_least} tokens or more",
            param=param,
        )


def truncated(
    token_ids: Sequence[int],
    request: GenerationRequest,
    *,
    num_output_tokens: int,
    max_model_len: int,
) -> Sequence[int]:
    """Return the prompt as `truncate_prompt_tokens` cuts it; -1 cuts what leaves no room.

    Raises:
        BadRequestError: it wants to keep more than fits.
    """
    keep = request.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if keep > max_model_len:
        raise out_of_range(
            "truncate_prompt_tokens", keep, f"at most {max_model_len}, the model's context length"
        )
    if keep == -1:
        keep = max(1, max_model_len - max(1, num_output_tokens))
    if len(token_ids) <= keep:
        return token_ids
    return token_ids[-keep:] if request.truncation_side == "left" else token_ids[:keep]


def check_not_empty(token_ids: Sequence[int], *, param: str) -> None:
    """Refuse a prompt without tokens: there is nothing to continue.

    Raises:
        BadRequestError: it has none.
    """
    if not token_ids:
        raise BadRequestError(f"{param} must not be empty", param=param)
