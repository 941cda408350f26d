"""Streamed answers, event by event."""

import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings, strategies as st

from http_support import ScriptedDispatcher, Served
from quire_engine.rpc import engine_pb2 as pb
from quire_router.errors import NoReplicaError, ReplicaLostError
from quire_router.openai.chat_format import ChatFormat
from quire_router.openai.envelope import Envelope, chunk_tail
from quire_router.openai.requests import ChatRequest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER: Any = [{"role": "user", "content": "hi"}]
USAGE = {"stream_options": {"include_usage": True}}


async def chunks(served: Served, path: str, **fields: Any) -> list[dict[str, Any]]:
    events = await served.events(path, fields)
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


async def test_a_chat_stream_opens_goes_on_and_ends_once(served: Served) -> None:
    found = await chunks(served, CHAT, messages=USER)

    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in found}) == 1
    assert all("usage" not in chunk for chunk in found)
    choices = [chunk["choices"][0] for chunk in found]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"]["content"] for choice in choices[1:-1]] == list("Hello!")
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * 7 + ["stop"]


async def test_usage_comes_last_and_alone(served: Served) -> None:
    for path, fields in ((CHAT, {"messages": USER}), (TEXT, {"prompt": "hi"})):
        *others, last = await chunks(served, path, **fields, **USAGE)

        assert all(chunk["usage"] is None for chunk in others)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6


async def test_continuous_usage_counts_up(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = await chunks(served, TEXT, prompt="hi", stream_options=options)

    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts == [1, 2, 3, 4, 5, 6, 6]
    assert {chunk["usage"]["prompt_tokens"] for chunk in found} == {2}


async def test_an_operator_can_force_usage(serve_with: Any) -> None:
    served = await serve_with(enable_force_include_usage=True)

    found = await chunks(served, TEXT, prompt="hi")

    assert found[-1]["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_choices_interleave_and_each_ends_once(served: Served, path: str) -> None:
    fields = {"messages": USER} if path == CHAT else {"prompt": "hi"}
    found = await chunks(served, path, n=3, **fields)

    choices = [choice for chunk in found for choice in chunk["choices"]]
    ended = [choice["index"] for choice in choices if choice["finish_reason"]]
    assert sorted(ended) == [0, 1, 2]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        texts = [
            choice["delta"].get("content", "") if path == CHAT else choice["text"] for choice in own
        ]
        assert "".join(texts) == "Hello!"


async def test_batches_stream_under_their_own_indexes(served: Served) -> None:
    found = await chunks(served, TEXT, prompt=["a", "b", "c"], echo=True, n=2)

    texts: dict[int, str] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {index: prompt + "Hello!" for index, prompt in enumerate("aabbcc")}


async def test_streamed_logprobs_equal_those_of_a_whole_answer(served: Served) -> None:
    for path in (CHAT, TEXT):
        body: dict[str, Any] = (
            {"messages": USER, "logprobs": True, "top_logprobs": 2}
            if path == CHAT
            else {"prompt": "hi", "logprobs": 2, "echo": True}
        )
        _, whole = await served.post(path, body)
        found = await chunks(served, path, **body)

        joined: dict[str, list[Any]] = {}
        for chunk in found:
            for choice in chunk["choices"]:
                for name, values in (choice["logprobs"] or {}).items():
                    joined.setdefault(name, []).extend(values or [])
        expected = {name: values or [] for name, values in whole["choices"][0]["logprobs"].items()}
        assert joined == expected


async def test_token_ids_stream_when_asked_for(served: Served) -> None:
    chat = await chunks(served, CHAT, messages=USER, return_token_ids=True)
    text = await chunks(served, TEXT, prompt="hi", return_token_ids=True)

    assert chat[0]["prompt_token_ids"][0] == 257
    assert text[0]["choices"][0]["prompt_token_ids"] == [104, 105]
    for found in (chat, text):
        ids = [item for chunk in found for item in chunk["choices"][0].get("token_ids", [])]
        assert bytes(ids) == b"Hello!"


async def test_a_prompt_can_be_scored_in_a_stream(served: Served) -> None:
    found = await chunks(served, TEXT, prompt="hi", echo=True, logprobs=1, max_tokens=0)

    assert "".join(chunk["choices"][0]["text"] for chunk in found) == "hi"
    assert found[-1]["choices"][0]["finish_reason"] == "length"


async def test_stream_headers_forbid_buffering(served: Served) -> None:
    body = {"messages": USER, "stream": True}
    async with served.http.post(served.url + CHAT, json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        assert "x-request-id" in response.headers


async def test_what_fails_before_the_first_token_has_its_own_status(served: Served) -> None:
    served.script.error = NoReplicaError()

    status, answer = await served.post(CHAT, {"messages": USER, "stream": True})

    assert status == 503
    assert answer["error"]["code"] == "no_replica_available"


async def test_what_fails_later_is_the_last_event(served: Served) -> None:
    served.script.error = ReplicaLostError("the replica went away")
    served.script.error_after = 3

    events = await served.events(CHAT, {"messages": USER})

    assert json.loads(events[-1]) == {
        "error": {
            "message": "the replica went away",
            "type": "service_unavailable_error",
            "param": None,
            "code": "replica_lost",
        }
    }
    assert "[DONE]" not in events


async def test_the_official_client_raises_the_last_event(served: Served) -> None:
    served.script.error = ReplicaLostError("the replica went away")
    served.script.error_after = 3
    client = await served.client()
    stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)

    received = [(await anext(stream)).choices[0].delta.content for _ in range(3)]

    assert received == ["", "H", "e"]
    with pytest.raises(openai.APIError, match="went away"):
        await anext(stream)


async def test_a_failing_generation_aborts_the_rest_of_its_batch(serve_with: Any) -> None:
    script = ScriptedDispatcher(error=ReplicaLostError("gone"), error_after=2)
    served = await serve_with(script)

    events = await served.events(TEXT, {"prompt": ["a", "b"]})

    assert "error" in json.loads(events[-1])
    assert all(generation.was_cancelled for generation in script.generations)


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=20), st.text(max_size=10))
def test_any_text_and_model_name_make_valid_events(text: str, model: str) -> None:
    request = ChatRequest.parse({"messages": [{"role": "user", "content": "x"}]})
    envelope = Envelope(id="x", created=1, model=model, system_fingerprint="f")
    format_ = ChatFormat(request, envelope, role="assistant", token_ids=[], as_ids=False)
    output = pb.Output(text=text, token_ids=[1], finish_reason=pb.FINISH_REASON_STOP)

    data = format_.stream().chunks(0, pb.GenerateResponse(outputs=[output]), chunk_tail())

    events = data.decode().split("\n\n")
    assert events.pop() == ""
    opening, delta, ending = (json.loads(event.removeprefix("data: ")) for event in events)
    assert delta["choices"][0]["delta"]["content"] == text
    assert {opening["model"], delta["model"], ending["model"]} == {model}
