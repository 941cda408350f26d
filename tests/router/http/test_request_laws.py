"""Whatever a client sends, the answer is a request or an error that says what is wrong."""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st
from prometheus_client import CollectorRegistry

from http_support import model_info, tokenizer_files
from quire_engine.rpc import engine_pb2 as pb
from quire_router.bodies import json_object
from quire_router.config import RouterConfig
from quire_router.errors import ApiError
from quire_router.http_metrics import HttpMetrics
from quire_router.openai.requests import (
    CHAT_CHECKS,
    COMPLETION_CHECKS,
    ChatRequest,
    CompletionRequest,
)
from quire_router.prompts import PromptRenderer
from quire_router.sampling import check_against_model, sampling_params
from quire_router.tokenization import Tokenization

numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | values}) | values
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "tool", "robot"]) | values,
            "content": st.text(max_size=8) | st.lists(parts, max_size=3) | values,
        },
        optional={"tool_calls": values, "name": values},
    ),
    max_size=3,
)

prompts = st.text(max_size=8) | st.lists(st.integers(-1, 300), max_size=4)


def bodies(checks: dict[str, Any], name: str, good: st.SearchStrategy[Any]) -> Any:
    others = st.dictionaries(st.sampled_from(sorted(checks)), values, max_size=6)
    return st.builds(lambda body, value: {**body, name: value}, others, good | values)


def as_received(body: dict[str, Any]) -> dict[str, Any]:
    """Through JSON: integers of more than 64 bits become floats."""
    return json_object(json.dumps(body).encode("utf-8", "surrogatepass"))


def outcome(work: Callable[[], Any]) -> Any:
    """What `work` returns, or the error that the client is told."""
    try:
        return work()
    except ApiError as error:
        return error


def is_told(error: ApiError) -> bool:
    return error.status in (400, 404) and bool(orjson.dumps(error.body()))


def read_chat(body: dict[str, Any]) -> pb.SamplingParams:
    request = ChatRequest.parse(as_received(body))
    check_against_model(request, model_info(), num_logprobs=request.num_logprobs, param="x")
    assert isinstance(PromptRenderer(RouterConfig()).render(request, tokenizer_files()), str)
    return sampling_params(request, n=request.n, max_tokens=1, logprobs=request.num_logprobs)


def read_completion(body: dict[str, Any]) -> pb.SamplingParams:
    request = CompletionRequest.parse(as_received(body))
    check_against_model(request, model_info(), num_logprobs=request.logprobs, param="x")
    return sampling_params(request, n=request.n, max_tokens=1, logprobs=request.logprobs)


@settings(max_examples=300)
@given(bodies(CHAT_CHECKS, "messages", messages))
def test_any_chat_is_taken_or_refused_with_reason(body: dict[str, Any]) -> None:
    result = outcome(lambda: read_chat(body))

    assert isinstance(result, pb.SamplingParams) or is_told(result)


@settings(max_examples=300)
@given(bodies(COMPLETION_CHECKS, "prompt", prompts))
def test_any_completion_is_taken_or_refused_with_reason(body: dict[str, Any]) -> None:
    result = outcome(lambda: read_completion(body))

    assert isinstance(result, pb.SamplingParams) or is_told(result)


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    result = outcome(lambda: json_object(data))

    assert isinstance(result, dict) or is_told(result)


@pytest.mark.parametrize("arguments", ["[" * 100_000, "{", "", '{"a": 1}'])
def test_arguments_of_past_tool_calls_may_be_anything(arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call]}

    result = outcome(lambda: read_chat({"messages": [message]}))

    assert isinstance(result, pb.SamplingParams) or is_told(result)


@settings(max_examples=50)
@given(st.text(max_size=40))
async def test_the_longest_token_bounds_how_short_a_text_can_get(text: str) -> None:
    tokens = Tokenization(num_threads=1, cache_bytes=0, metrics=HttpMetrics(CollectorRegistry()))
    await tokens.use(tokenizer_files())

    token_ids = await tokens.encode(text, add_special_tokens=False)

    assert len(token_ids) * tokens.max_token_chars >= len(text)
    tokens.close()
