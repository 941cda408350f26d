"""Bodies of /tokenize and /detokenize, as vLLM has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from quire_router.openai.fields import boolean, missing, parse, string, token_ids
from quire_router.openai.requests import ChatRequest


@dataclass(slots=True, kw_only=True)
class TokenizeRequest:
    """A text, or a chat to render first."""

    model: str | None = None
    prompt: str = ""
    chat: ChatRequest | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Check a body.

        Raises:
            BadRequestError: it has neither prompt nor messages, or a field is wrong.
        """
        checks = {
            "model": string,
            "prompt": string,
            "add_special_tokens": boolean,
            "return_token_strs": boolean,
        }
        fields = parse(body, checks)
        if body.get("messages") is not None:
            # A rendered chat holds its special tokens already.
            return cls(**{"add_special_tokens": False, **fields}, chat=ChatRequest.parse(body))
        if "prompt" not in fields:
            raise missing("prompt")
        return cls(**fields)


@dataclass(slots=True, kw_only=True)
class DetokenizeRequest:
    """Token ids to turn into text."""

    tokens: list[int]
    model: str | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Check a body.

        Raises:
            BadRequestError: a field is wrong or missing.
        """
        fields = parse(body, {"model": string, "tokens": token_ids})
        if "tokens" not in fields:
            raise missing("tokens")
        return cls(**fields)
