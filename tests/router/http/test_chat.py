"""Chat completions as the official client sees them, whole."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from http_support import ScriptedDispatcher, Served, serve, tokenizer_files

USER: Any = [{"role": "user", "content": "hi"}]


async def ask(served: Served, **fields: Any) -> ChatCompletion:
    client = await served.client()
    options = {"model": "fake", "messages": USER, **fields}
    answer: ChatCompletion = await client.chat.completions.create(**options)
    return answer


async def test_an_answer_has_everything_that_clients_expect(served: Served) -> None:
    answer = await ask(served)

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "fake"
    assert answer.system_fingerprint == "quire-1.2.3"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello!"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


async def test_the_prompt_is_the_rendered_template(served: Served) -> None:
    await ask(served, messages=[{"role": "system", "content": "Be."}, *USER])

    [request] = served.script.requests
    ids = list(request.prompt_token_ids)
    text = "".join(chr(item) if item < 256 else f"<{item}>" for item in ids)
    assert text == "<257>system\nBe.<258>\n<257>user\nhi<258>\n<257>assistant\n"


async def test_absent_fields_are_left_to_the_engine(served: Served) -> None:
    await ask(served)

    [request] = served.script.requests
    assert request.sampling.ListFields() == []
    assert request.final_only


async def test_every_sampling_field_reaches_the_engine(served: Served) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "seed": 42,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "stop_token_ids": [5, 6],
        "allowed_token_ids": [7, 8],
        "bad_words": ["no"],
        "prompt_logprobs": 0,
    }
    client = await served.client()

    await client.chat.completions.create(
        model="fake",
        messages=USER,
        n=2,
        stop="END",
        max_completion_tokens=9,
        logit_bias={"65": 5},
        logprobs=True,
        top_logprobs=3,
        extra_body={**fields, "priority": -3, "cache_salt": "tenant"},
    )

    [request] = served.script.requests
    sent = request.sampling
    for name, value in fields.items():
        found = getattr(sent, name)
        assert (list(found) if isinstance(value, list) else found) == value, name
    assert (sent.n, sent.max_tokens, sent.logprobs) == (2, 9, 3)
    assert list(sent.stop) == ["END"]
    assert dict(sent.logit_bias) == {65: 5.0}
    assert (request.priority, request.cache_salt) == (-3, "tenant")


async def test_max_completion_tokens_wins_over_max_tokens(served: Served) -> None:
    answer = await ask(served, max_tokens=5, max_completion_tokens=2)

    assert answer.choices[0].message.content == "He"
    assert answer.choices[0].finish_reason == "length"


async def test_n_choices_come_in_order(served: Served) -> None:
    answer = await ask(served, n=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello!"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18


async def test_logprobs_have_bytes_and_the_most_likely_alternatives(served: Served) -> None:
    answer = await ask(served, logprobs=True, top_logprobs=2, max_tokens=1)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    [token] = logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("H", -0.5, [72])
    # The chosen token has rank 2, "A" rank 1.
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("A", -0.25), ("H", -0.5)]


async def test_logprobs_without_alternatives(served: Served) -> None:
    answer = await ask(served, logprobs=True, max_tokens=1)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].top_logprobs == []


async def test_tokens_as_token_ids(served: Served) -> None:
    answer = await ask(
        served, logprobs=True, max_tokens=1, extra_body={"return_tokens_as_token_ids": True}
    )

    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].token == "token_id:72"


async def test_token_ids_and_prompt_logprobs_are_returned_when_asked_for(served: Served) -> None:
    answer = await ask(
        served, max_tokens=2, extra_body={"return_token_ids": True, "prompt_logprobs": 1}
    )

    dumped = answer.model_dump()
    prompt_ids = list(served.script.requests[0].prompt_token_ids)
    assert dumped["prompt_token_ids"] == prompt_ids
    assert dumped["choices"][0]["token_ids"] == [72, 101]
    assert dumped["prompt_logprobs"][0] is None
    assert len(dumped["prompt_logprobs"]) == len(prompt_ids)
    assert dumped["prompt_logprobs"][1][str(prompt_ids[1])] == {
        "logprob": -0.5,
        "rank": 2,
        "decoded_token": chr(prompt_ids[1]),
    }


async def test_the_stop_reason_names_the_stop_string(served: Served) -> None:
    served.script.stop_string = "END"

    answer = await ask(served)

    assert answer.choices[0].model_dump()["stop_reason"] == "END"


async def test_cached_prompt_tokens_are_reported(served: Served) -> None:
    served.script.num_cached = 16

    answer = await ask(served)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16


async def test_the_model_may_be_left_out_or_be_an_alias(served: Served) -> None:
    status, unnamed = await served.post("/v1/chat/completions", {"messages": USER})
    alias = await ask(served, model="org/alias")

    assert status == 200
    assert unnamed["model"] == "fake"
    assert alias.model == "org/alias"


async def test_text_parts_and_the_developer_role_are_rendered(served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await ask(
        served,
        messages=[{"role": "developer", "content": "D"}, {"role": "user", "content": parts}],
    )

    text = bytes(item for item in served.script.requests[0].prompt_token_ids if item < 256)
    assert text == b"system\nD\nuser\na\nb\nassistant\n"


async def test_the_final_message_can_be_continued_and_echoed(served: Served) -> None:
    answer = await ask(
        served,
        messages=[*USER, {"role": "assistant", "content": "Well, "}],
        extra_body={"continue_final_message": True, "echo": True},
    )

    ids = list(served.script.requests[0].prompt_token_ids)
    assert bytes(ids[-6:]) == b"Well, "
    assert answer.choices[0].message.content == "Well, Hello!"


async def test_tools_are_rendered_into_the_template() -> None:
    template = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    script = ScriptedDispatcher(files=tokenizer_files(chat_template=template))
    async with serve(script) as served:
        tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
        await ask(served, tools=[tool], tool_choice="auto")

    assert bytes(script.requests[0].prompt_token_ids) == b"[look_up]"


async def test_a_template_of_the_request_needs_trust(serve_with: Any) -> None:
    served = await serve_with(trust_request_chat_template=True)

    await ask(
        served,
        extra_body={
            "chat_template": "{{ greeting }} {{ messages[0].content }}",
            "chat_template_kwargs": {"greeting": "Oh"},
        },
    )

    assert bytes(served.script.requests[0].prompt_token_ids) == b"Oh hi"


async def test_template_errors_are_the_clients_to_read(serve_with: Any) -> None:
    files = tokenizer_files(chat_template="{{ raise_exception('roles must alternate') }}")
    served = await serve_with(ScriptedDispatcher(files=files))

    with pytest.raises(openai.BadRequestError, match="roles must alternate"):
        await ask(served)


async def test_a_model_without_a_template_says_so(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(files=tokenizer_files(chat_template="")))

    with pytest.raises(openai.BadRequestError, match="no chat template"):
        await ask(served)


async def test_prompts_can_be_truncated(served: Served) -> None:
    await ask(served, extra_body={"truncate_prompt_tokens": 4})
    await ask(served, extra_body={"truncate_prompt_tokens": 4, "truncation_side": "right"})

    left, right = served.script.requests
    assert bytes(left.prompt_token_ids) == b"ant\n"
    assert bytes(list(right.prompt_token_ids)[1:]) == b"use"


async def test_repeated_request_ids_stay_unique_on_the_engine(served: Served) -> None:
    client = await served.client(default_headers={"x-request-id": "mine"})

    for _ in range(2):
        answer = await client.chat.completions.with_raw_response.create(model="fake", messages=USER)
        assert answer.headers["x-request-id"] == "mine"
        assert answer.parse().id == "chatcmpl-mine"

    first, second = (request.request_id for request in served.script.requests)
    assert first != second
    assert first.startswith("mine-")
