"""Requests to generate, as clients send them: checked, typed, with OpenAI's defaults.

`None` means that the client left a field out. Sampling fields stay None then: the engine fills them
from the model's generation config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from quire_router.errors import BadRequestError
from quire_router.openai.fields import (
    Check,
    boolean,
    integer,
    list_of,
    mapping,
    missing,
    number,
    one_of,
    out_of_range,
    parse,
    refused,
    string,
    string_or_list,
    token_biases,
    token_ids,
    wrong_type,
)
from quire_router.openai.messages import check_messages, check_tool_choice, check_tools

MAX_N = 128
MAX_STOP_STRINGS = 64
MAX_PROMPTS = 2048
DEFAULT_COMPLETION_TOKENS = 16
INT32 = 2**31 - 1
INT64 = 2**63 - 1


@dataclass(slots=True, kw_only=True)
class StreamOptions:
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @classmethod
    def parse(cls, name: str, value: Any) -> Self:
        """Check `stream_options`."""
        names = ("include_usage", "continuous_usage_stats")
        options = mapping(name, value)
        checked = {
            key: boolean(f"{name}.{key}", options[key])
            for key in names
            if options.get(key) is not None
        }
        return cls(**checked)


@dataclass(slots=True, kw_only=True)
class GenerationRequest:
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    # Sampling
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: list[int] = field(default_factory=list)
    bad_words: list[str] = field(default_factory=list)
    seed: int | None = None
    # Length and end
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    # Text
    echo: bool = False
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    # Reporting
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    # Scheduling
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None


@dataclass(slots=True, kw_only=True)
class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Check a body.

        Raises:
            BadRequestError: a field is missing, of the wrong type, out of range or not supported.
        """
        _require(body, "messages")
        request = cls(**_parsed(body, CHAT_CHECKS))
        _check_combinations(body, request)
        if request.top_logprobs is not None and not request.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return request

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate; None: until the context is full."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def opens_new_message(self) -> bool:
        """Whether the prompt ends with the opening of the answer."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt


@dataclass(slots=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """Body of /v1/completions; several prompts make one response."""

    prompt: list[str] | list[list[int]]
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool = True

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Check a body.

        Raises:
            BadRequestError: a field is missing, of the wrong type, out of range or not supported.
        """
        _require(body, "prompt")
        request = cls(**_parsed(body, COMPLETION_CHECKS))
        _check_combinations(body, request)
        request._check_own_combinations()
        return request

    @property
    def num_candidates(self) -> int:
        """Completions to generate per prompt, of which the `n` most likely are returned."""
        return self.best_of or self.n

    def _check_own_combinations(self) -> None:
        if self.max_tokens == 0 and not self.echo:
            raise out_of_range("max_tokens", 0, "at least 1 (0 only with echo)")
        if self.best_of is None:
            return
        if self.best_of < self.n:
            raise out_of_range("best_of", self.best_of, f"at least n={self.n}")
        if self.stream and self.best_of > self.n:
            raise BadRequestError("best_of cannot be used with stream", param="best_of")


def _require(body: Mapping[str, Any], name: str) -> None:
    if body.get(name) is None:
        raise missing(name)


def _parsed(body: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    parsed = parse(body, checks)
    # A refused field with a harmless value was checked, and has nowhere to go.
    return {name: value for name, value in parsed.items() if value is not None}


def _check_combinations(body: Mapping[str, Any], request: GenerationRequest) -> None:
    if body.get("stream_options") is not None and not request.stream:
        raise BadRequestError(
            "stream_options can only be used when stream is true", param="stream_options"
        )
    if request.prompt_logprobs is not None and request.stream:
        raise BadRequestError(
            "prompt_logprobs cannot be used when stream is true", param="prompt_logprobs"
        )


def _prompts(name: str, value: Any) -> list[str] | list[list[int]]:
    """Check `prompt`: a string, token ids, or several of either; always gives a list of prompts."""
    expected = "a string, an array of strings, of token ids, or of arrays of token ids"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type(name, value, expected)
    if not value:
        raise out_of_range(name, value, "not empty")
    if isinstance(value[0], int | float):
        return [token_ids(name, value)]
    if len(value) > MAX_PROMPTS:
        raise out_of_range(name, len(value), f"an array of at most {MAX_PROMPTS} prompts")
    if isinstance(value[0], str):
        return list_of(string)(name, value)  # type: ignore[no-any-return]  # checks are untyped
    if not isinstance(value[0], list):
        raise wrong_type(f"{name}[0]", value[0], "a string, a token id or an array of token ids")
    return [token_ids(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _truncation(name: str, value: Any) -> int:
    size: int = integer(-1, INT32)(name, value)
    if size == 0:
        raise out_of_range(name, size, "-1 or at least 1")
    return size


def _text_format(name: str, value: Any) -> None:
    kind = mapping(name, value).get("type")
    if kind != "text":
        refused(f"type {kind!r}; this server does not constrain output yet, only 'text' works")(
            name, value
        )


_NOT_CONSTRAINED = "this server does not constrain output yet"

_COMMON_CHECKS: dict[str, Check] = {
    "model": string,
    "stream": boolean,
    "stream_options": StreamOptions.parse,
    "n": integer(1, MAX_N),
    "temperature": number(0.0, 2.0),
    "top_p": number(0.0, 1.0, excludes_low=True),
    "top_k": integer(-1, INT32),
    "min_p": number(0.0, 1.0),
    "presence_penalty": number(-2.0, 2.0),
    "frequency_penalty": number(-2.0, 2.0),
    "repetition_penalty": number(0.0, excludes_low=True),
    "logit_bias": token_biases,
    "allowed_token_ids": token_ids,
    "bad_words": string_or_list(max_num_items=1024),
    "seed": integer(-INT64 - 1, INT64),
    "min_tokens": integer(0, INT32),
    "stop": string_or_list(max_num_items=MAX_STOP_STRINGS),
    "stop_token_ids": token_ids,
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "echo": boolean,
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "truncate_prompt_tokens": _truncation,
    "truncation_side": one_of("left", "right"),
    "prompt_logprobs": integer(-1, INT32),
    "return_token_ids": boolean,
    "return_tokens_as_token_ids": boolean,
    "priority": integer(-INT32 - 1, INT32),
    "request_id": string,
    "cache_salt": string,
    "add_special_tokens": boolean,
    # Would change the answer, so they are refused rather than ignored.
    "use_beam_search": refused("there is no beam search", unless=(False,)),
    "structured_outputs": refused(_NOT_CONSTRAINED),
    "guided_json": refused(_NOT_CONSTRAINED),
    "guided_regex": refused(_NOT_CONSTRAINED),
    "guided_choice": refused(_NOT_CONSTRAINED),
    "guided_grammar": refused(_NOT_CONSTRAINED),
    "logits_processors": refused("requests cannot bring code", unless=([],)),
    "response_format": _text_format,
}

CHAT_CHECKS: dict[str, Check] = {
    **_COMMON_CHECKS,
    "messages": check_messages,
    "max_tokens": integer(1, INT32),
    "max_completion_tokens": integer(1, INT32),
    "logprobs": boolean,
    "top_logprobs": integer(-1, INT32),
    "tools": check_tools,
    "tool_choice": check_tool_choice,
    "reasoning_effort": string,
    "documents": list_of(mapping),
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "chat_template": string,
    "chat_template_kwargs": mapping,
    "functions": refused("use tools", unless=([],)),
    "function_call": refused("use tool_choice", unless=("none", "auto")),
    "modalities": refused("the model writes text only", unless=(["text"], [])),
    "audio": refused("the model writes text only"),
    "web_search_options": refused("there is no web search"),
    "prediction": refused("there are no predicted outputs"),
}

COMPLETION_CHECKS: dict[str, Check] = {
    **_COMMON_CHECKS,
    "prompt": _prompts,
    "max_tokens": integer(0, INT32),
    "logprobs": integer(-1, INT32),
    "best_of": integer(1, MAX_N),
    "suffix": refused("there is no fill-in-the-middle", unless=("",)),
    "prompt_embeds": refused("prompts are text or token ids", unless=([],)),
}
