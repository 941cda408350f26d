"""The forms in which `LLM.generate` takes prompts, brought to one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from quire_engine.errors import InvalidRequestError

PromptLike = str | Sequence[int] | Mapping[str, Any]
"""Text; token ids; {"prompt": text}; or {"prompt_token_ids": ids}. The last two may also have a
"cache_salt"."""

_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: its text, its token ids, or both (the ids are then what counts)."""

    text: str | None = None
    token_ids: Sequence[int] | None = None
    cache_salt: str = ""


def parse_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """Return every prompt of a call, which gave one or a sequence of them.

    Raises:
        InvalidRequestError: one has another form.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return [_parse(prompts)]
    items = list(prompts)
    if items and isinstance(items[0], Integral):
        return [_parse(items)]  # the token ids of one prompt
    return [_parse(item) for item in items]


def _parse(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt)
    if isinstance(prompt, Sequence) or _is_array(prompt):
        return Prompt(token_ids=prompt)
    raise InvalidRequestError(
        f"a prompt must be a string, a list of token ids or a dict with one of them, got {prompt!r}"
        f" of type {type(prompt).__name__}",
        "prompt",
    )


def _parse_mapping(prompt: Mapping[str, Any]) -> Prompt:
    unknown = [name for name in prompt if name not in _KEYS and prompt[name]]
    if unknown:
        raise InvalidRequestError(
            f"a prompt has {', '.join(map(repr, unknown))}; known are {', '.join(sorted(_KEYS))}",
            "prompt",
        )
    text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and token_ids is None:
        raise InvalidRequestError("a prompt needs 'prompt' or 'prompt_token_ids'", "prompt")
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(
            f"'prompt' must be a string, got {text!r} of type {type(text).__name__}", "prompt"
        )
    if isinstance(token_ids, str):
        raise InvalidRequestError("'prompt_token_ids' must be a list of token ids", "prompt")
    salt = prompt.get("cache_salt") or ""
    return Prompt(text=text, token_ids=token_ids, cache_salt=salt)


def _is_array(value: Any) -> bool:
    """Tell whether this is an array with a dimension, of numpy or alike."""
    return bool(getattr(value, "shape", ()))
