"""Every mistake of a client is told apart, in OpenAI's form, naming the field."""

from typing import Any

import pytest

from http_support import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": USER, **fields}


def message(**fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "hi", **fields}])


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "hi", **fields}


# path, body, status, param, what the message must say
BAD = [
    # Bodies
    (CHAT, b"", 400, None, "empty"),
    (CHAT, b"{", 400, None, "not valid JSON"),
    (CHAT, b'{"messages": [}', 400, None, "not valid JSON"),
    (CHAT, b"\xff\xfe", 400, None, "not valid JSON"),
    (CHAT, b'{"temperature": NaN}', 400, None, "not valid JSON"),
    (CHAT, b'{"a": "\\ud800"}', 400, None, "not valid JSON"),
    (CHAT, b"[" * 5000, 400, None, "not valid JSON"),
    (CHAT, [], 400, None, "JSON object, not []"),
    (CHAT, b'"hello"', 400, None, "JSON object"),
    (CHAT, b"null", 400, None, "JSON object, not null"),
    (TEXT, 7, 400, None, "JSON object, not 7"),
    # Models
    (CHAT, chat(model="nobody"), 404, "model", "'nobody' does not exist"),
    (CHAT, chat(model=7), 400, "model", "must be a string, not 7"),
    (TEXT, text(model=""), 404, "model", "does not exist"),
    # Messages
    (CHAT, {"model": "fake"}, 400, "messages", "required"),
    (CHAT, chat(messages=None), 400, "messages", "required"),
    (CHAT, chat(messages=[]), 400, "messages", "at least one"),
    (CHAT, chat(messages="hi"), 400, "messages", 'an array, not "hi"'),
    (CHAT, chat(messages=["hi"]), 400, "messages[0]", "an object"),
    (CHAT, chat(messages=[{"content": "hi"}]), 400, "messages[0].role", "required"),
    (CHAT, message(role="robot"), 400, "messages[0].role", "one of system"),
    (CHAT, message(role=1), 400, "messages[0].role", "a string, not 1"),
    (CHAT, chat(messages=[{"role": "user"}]), 400, "messages[0].content", "required"),
    (CHAT, message(content=5), 400, "messages[0].content", "not 5"),
    (CHAT, message(content=[7]), 400, "messages[0].content[0]", "an object, not 7"),
    (CHAT, message(content=[{}]), 400, "messages[0].content[0].type", "required"),
    (
        CHAT,
        message(content=[{"type": "image_url", "image_url": {"url": "data:"}}]),
        400,
        "messages[0].content[0].type",
        "'image_url'; this model takes text only",
    ),
    (
        CHAT,
        message(content=[{"type": "text", "text": "a"}, {"type": "input_audio"}]),
        400,
        "messages[0].content[1].type",
        "text only",
    ),
    (CHAT, message(content=[{"type": "text"}]), 400, "messages[0].content[0].text", "required"),
    (CHAT, message(role="assistant", tool_calls={}), 400, "messages[0].tool_calls", "an array"),
    (
        CHAT,
        message(role="assistant", tool_calls=[{"id": "x"}]),
        400,
        "messages[0].tool_calls[0].function",
        "required",
    ),
    (CHAT, chat(continue_final_message=True, add_generation_prompt=True), 400, "messages", "excl"),
    # Tools
    (CHAT, chat(tools=[{"type": "function"}]), 400, "tools[0].function", "required"),
    (CHAT, chat(tools=[{"type": "magic"}]), 400, "tools[0].type", "'function'"),
    (CHAT, chat(tools="f"), 400, "tools", "an array"),
    (CHAT, chat(tool_choice="required"), 400, "tool_choice", "does not force tool calls"),
    (
        CHAT,
        chat(tool_choice={"type": "function", "function": {"name": "f"}}),
        400,
        "tool_choice",
        "does not force tool calls",
    ),
    (CHAT, chat(tool_choice="sometimes"), 400, "tool_choice", "one of"),
    # Numbers
    (CHAT, chat(temperature="hot"), 400, "temperature", 'a number, not "hot"'),
    (CHAT, chat(temperature=2.5), 400, "temperature", "in [0.0, 2.0], not 2.5"),
    (CHAT, chat(temperature=-1), 400, "temperature", "not -1"),
    (CHAT, chat(temperature=True), 400, "temperature", "a number, not true"),
    (CHAT, chat(top_p=0), 400, "top_p", "in (0.0, 1.0], not 0"),
    (CHAT, chat(top_p=1.01), 400, "top_p", "not 1.01"),
    (CHAT, chat(top_k=-2), 400, "top_k", "not -2"),
    (CHAT, chat(top_k=1.5), 400, "top_k", "an integer, not 1.5"),
    (CHAT, chat(min_p=2), 400, "min_p", "in [0.0, 1.0]"),
    (CHAT, chat(presence_penalty=3), 400, "presence_penalty", "in [-2.0, 2.0]"),
    (CHAT, chat(frequency_penalty=-3), 400, "frequency_penalty", "in [-2.0, 2.0]"),
    (CHAT, chat(repetition_penalty=0), 400, "repetition_penalty", "greater than 0"),
    (CHAT, chat(n=0), 400, "n", "in [1, 128], not 0"),
    (CHAT, chat(n=129), 400, "n", "in [1, 128], not 129"),
    (CHAT, chat(n="2"), 400, "n", 'an integer, not "2"'),
    (CHAT, chat(seed=1.5), 400, "seed", "an integer"),
    (CHAT, chat(seed=2**70), 400, "seed", "seed must be"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens", "not 0"),
    (CHAT, chat(max_completion_tokens=-1), 400, "max_completion_tokens", "not -1"),
    (CHAT, chat(min_tokens=-1), 400, "min_tokens", "not -1"),
    (CHAT, chat(priority="high"), 400, "priority", "an integer"),
    (CHAT, b'{"repetition_penalty": 1e999}', 400, None, "not valid JSON"),
    (CHAT, chat(temperature={"a": 1}), 400, "temperature", "a number, not an object"),
    (CHAT, chat(temperature="x" * 1000), 400, "temperature", "..."),
    # Lists, strings and switches
    (CHAT, chat(stop=5), 400, "stop", "a string or an array of strings, not 5"),
    (CHAT, chat(stop=[5]), 400, "stop[0]", "a string, not 5"),
    (CHAT, chat(stop=[""]), 400, "stop", "without empty strings"),
    (CHAT, chat(stop=["x"] * 65), 400, "stop", "at most 64"),
    (CHAT, chat(stop_token_ids=["a"]), 400, "stop_token_ids[0]", 'an integer, not "a"'),
    (CHAT, chat(stop_token_ids=[9999]), 400, "stop_token_ids", "below 259"),
    (CHAT, chat(allowed_token_ids=[-1]), 400, "allowed_token_ids[0]", "not -1"),
    (CHAT, chat(bad_words=[1]), 400, "bad_words[0]", "a string"),
    (CHAT, chat(logit_bias=[1]), 400, "logit_bias", "an object"),
    (CHAT, chat(logit_bias={"x": 1}), 400, "logit_bias", "keys are token ids"),
    (CHAT, chat(logit_bias={"5": 101}), 400, "logit_bias.5", "in [-100.0, 100.0], not 101"),
    (CHAT, chat(logit_bias={"9999": 1}), 400, "logit_bias", "below 259"),
    (CHAT, chat(ignore_eos=1), 400, "ignore_eos", "true or false, not 1"),
    (CHAT, chat(stream="yes"), 400, "stream", "true or false"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "stream_options", "stream is true"),
    (CHAT, chat(stream=True, stream_options=[]), 400, "stream_options", "an object"),
    (
        CHAT,
        chat(stream=True, stream_options={"include_usage": 1}),
        400,
        "stream_options.include_usage",
        "true or false",
    ),
    (CHAT, chat(stream=True, prompt_logprobs=1), 400, "prompt_logprobs", "stream"),
    (CHAT, chat(truncate_prompt_tokens=0), 400, "truncate_prompt_tokens", "-1 or at least 1"),
    (CHAT, chat(truncate_prompt_tokens=513), 400, "truncate_prompt_tokens", "at most 512"),
    (CHAT, chat(truncation_side="top"), 400, "truncation_side", "one of left, right"),
    # Logprobs
    (CHAT, chat(logprobs=1), 400, "logprobs", "true or false"),
    (CHAT, chat(top_logprobs=2), 400, "top_logprobs", "needs logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs", "in [0, 20]"),
    (CHAT, chat(logprobs=True, top_logprobs=-1), 400, "top_logprobs", "in [0, 20]"),
    (CHAT, chat(prompt_logprobs=21), 400, "prompt_logprobs", "in [0, 20]"),
    (TEXT, text(logprobs=True), 400, "logprobs", "an integer, not true"),
    (TEXT, text(logprobs=21), 400, "logprobs", "in [0, 20]"),
    # What is not done
    (CHAT, chat(response_format={"type": "json_object"}), 400, "response_format", "json_object"),
    (CHAT, chat(response_format={"type": "json_schema"}), 400, "response_format", "json_schema"),
    (CHAT, chat(response_format="text"), 400, "response_format", "an object"),
    (CHAT, chat(functions=[{"name": "f"}]), 400, "functions", "use tools"),
    (CHAT, chat(audio={"voice": "x"}), 400, "audio", "text only"),
    (CHAT, chat(modalities=["text", "audio"]), 400, "modalities", "text only"),
    (CHAT, chat(web_search_options={}), 400, "web_search_options", "no web search"),
    (CHAT, chat(guided_json={}), 400, "guided_json", "does not constrain"),
    (CHAT, chat(structured_outputs={"regex": "a"}), 400, "structured_outputs", "constrain"),
    (CHAT, chat(use_beam_search=True), 400, "use_beam_search", "beam"),
    (CHAT, chat(chat_template="{{ 1 }}"), 400, "chat_template", "--trust-request-chat-template"),
    (TEXT, text(suffix="end"), 400, "suffix", "not supported"),
    # Prompts
    (TEXT, {"model": "fake"}, 400, "prompt", "required"),
    (TEXT, text(prompt=""), 400, "prompt", "must not be empty"),
    (TEXT, text(prompt=[]), 400, "prompt", "not empty"),
    (TEXT, text(prompt=[[]]), 400, "prompt", "must not be empty"),
    (TEXT, text(prompt=5), 400, "prompt", "a string, an array of"),
    (TEXT, text(prompt={"text": "a"}), 400, "prompt", "a string, an array of"),
    (TEXT, text(prompt=[None]), 400, "prompt[0]", "not null"),
    (TEXT, text(prompt=["a", 1]), 400, "prompt[1]", "a string, not 1"),
    (TEXT, text(prompt=[1, "a"]), 400, "prompt[1]", 'an integer, not "a"'),
    (TEXT, text(prompt=[1, -1]), 400, "prompt[1]", "not -1"),
    (TEXT, text(prompt=[1, True]), 400, "prompt[1]", "not true"),
    (TEXT, text(prompt=[1, 99999]), 400, "prompt", "below 259"),
    (TEXT, text(prompt=[2**40]), 400, "prompt[0]", "in [0, 4294967295]"),
    (TEXT, text(prompt=[[1], "a"]), 400, "prompt[1]", "an array"),
    (TEXT, text(prompt=["a"] * 2049), 400, "prompt", "at most 2048"),
    (TEXT, text(max_tokens=0), 400, "max_tokens", "0 only with echo"),
    (TEXT, text(best_of=1, n=2), 400, "best_of", "at least n=2, not 1"),
    (TEXT, text(best_of=2, stream=True), 400, "best_of", "stream"),
    # Lengths
    (TEXT, text(prompt="x" * 512), 400, "prompt", "maximum context length is 512 tokens"),
    (TEXT, text(prompt=[7] * 600), 400, "prompt", "the prompt has 600 tokens"),
    (TEXT, text(prompt="x" * 100_000), 400, "prompt", "maximum context length is 512"),
    (TEXT, text(prompt="x" * 500, max_tokens=13), 400, "max_tokens", "at most 12, not 13"),
    (CHAT, message(content="x" * 600), 400, "messages", "maximum context length is 512"),
    (CHAT, chat(max_completion_tokens=512), 400, "max_completion_tokens", "not 512"),
    # Tokens and text
    ("/tokenize", {}, 400, "prompt", "required"),
    ("/tokenize", {"prompt": 5}, 400, "prompt", "a string, not 5"),
    ("/tokenize", {"messages": []}, 400, "messages", "at least one"),
    ("/tokenize", b"nonsense", 400, None, "not valid JSON"),
    ("/detokenize", {}, 400, "tokens", "required"),
    ("/detokenize", {"tokens": "a"}, 400, "tokens", "an array"),
    ("/detokenize", {"tokens": [99999]}, 400, "tokens", "below 259"),
    # Paths
    ("/v1/embeddings", {"input": "a"}, 501, None, "not served"),
    ("/v1/responses", {"input": "a"}, 501, None, "not served"),
    ("/v1/chat/completion", chat(), 404, None, "nothing at /v1/chat/completion"),
    ("/v1/chat/completions/", chat(), 404, None, "nothing at"),
    ("/v1/models", {}, 405, None, "does not take POST"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "needle"),
    BAD,
    ids=[f"{number}-{case[3]}" for number, case in enumerate(BAD)],
)
async def test_a_clients_mistake_is_named(
    shared: Served, path: str, body: Any, status: int, param: str | None, needle: str
) -> None:
    answered_status, answer = await shared.post(path, body)

    assert answered_status == status, answer
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert needle in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (text(prompt="x" * 600), "context_length_exceeded"),
        (text(model="x"), "model_not_found"),
        (text(temperature="x"), "invalid_type"),
        (text(temperature=9), "invalid_value"),
        (text(prompt=None), "missing_required_parameter"),
        (text(suffix="x"), "unsupported_value"),
    ],
)
async def test_errors_carry_the_code_that_programs_look_at(
    shared: Served, body: dict[str, Any], code: str
) -> None:
    _, answer = await shared.post(TEXT, body)

    assert answer["error"]["code"] == code


HARMLESS: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "stream_interval": 5,
    "modalities": ["text"],
    "functions": [],
    "function_call": "none",
    "tool_choice": "none",
    "use_beam_search": False,
    "frequency_penalty": None,
    "logit_bias": {},
    "stop": None,
    "stream_options": None,
    "some_future_field": {"x": 1},
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_harmless_fields_are_accepted(shared: Served, name: str) -> None:
    status, answer = await shared.post(CHAT, chat(**{name: HARMLESS[name]}))

    assert status == 200, answer
