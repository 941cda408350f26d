"""The official client against `quire serve` with the demo model."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from serve_process import Served, wait_until

pytestmark = pytest.mark.slow

WAIT_S = 60.0

QUESTION: list[ChatCompletionUserMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.api_url, api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def is_idle(served: Served) -> bool:
    """Whether the engine holds nothing for any request: no sequence, no block."""
    return (
        served.metric("quire_router_replica_running") == 0
        and served.metric("quire_router_replica_waiting") == 0
        and served.metric("quire_router_replica_used_blocks") == 0
    )


def test_chat_answers_with_paris(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=32
    )

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 32
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_carries_the_same_text_as_one_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=32
    )
    stream = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_with_n_logprobs_echo_and_seed(client: openai.OpenAI, model: str) -> None:
    def ask() -> openai.types.Completion:
        return client.completions.create(
            model=model,
            prompt="The sky is",
            max_tokens=8,
            n=3,
            temperature=0.9,
            seed=11,
            logprobs=2,
            echo=True,
        )

    first, second = ask(), ask()

    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len({choice.text for choice in first.choices}) > 1
    for choice in first.choices:
        assert choice.text.startswith("The sky is")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None


def test_a_stop_string_is_cut_exactly(client: openai.OpenAI, model: str) -> None:
    free = client.completions.create(
        model=model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0
    )
    cut = client.completions.create(
        model=model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0, stop=["7"]
    )

    assert "7" in free.choices[0].text
    assert cut.choices[0].text == free.choices[0].text.split("7")[0]
    assert cut.choices[0].finish_reason == "stop"


def test_a_cancelled_stream_frees_the_engine(
    served: Served, client: openai.OpenAI, model: str
) -> None:
    stream = client.completions.create(
        model=model,
        prompt="Count to one million: 1, 2,",
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for number, _ in enumerate(stream):
        if number == 5:
            break
    wait_until(lambda: not is_idle(served), timeout_s=WAIT_S, what="the stream shows as running")
    stream.close()

    wait_until(
        lambda: is_idle(served), timeout_s=WAIT_S, what="the cancelled stream's blocks are free"
    )
    assert is_idle(served)


async def test_the_async_client_runs_many_at_once(served: Served, model: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=served.api_url, api_key="unused", max_retries=0
    ) as client:

        async def ask(number: int) -> str:
            answer = await client.completions.create(
                model=model, prompt=f"{number} plus one is", max_tokens=12, temperature=0
            )
            return answer.choices[0].text

        together = await asyncio.gather(*(ask(number) for number in range(16)))

    assert len(together) == 16
    assert all(together)


async def test_a_cancelled_async_request_frees_the_engine(served: Served, model: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=served.api_url, api_key="unused", max_retries=0
    ) as client:
        task = asyncio.create_task(
            client.completions.create(
                model=model,
                prompt="An endless story:",
                max_tokens=4000,
                extra_body={"ignore_eos": True},
            )
        )
        await asyncio.to_thread(
            wait_until, lambda: not is_idle(served), timeout_s=WAIT_S, what="the request shows"
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    wait_until(
        lambda: is_idle(served), timeout_s=WAIT_S, what="the cancelled request's blocks are free"
    )


@pytest.mark.parametrize(
    ("change", "error", "needle"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"prompt": "x " * 9000}, openai.BadRequestError, "maximum context length"),
        ({"model": "nobody"}, openai.NotFoundError, "nobody"),
    ],
)
def test_bad_input_raises_the_clients_own_error(
    client: openai.OpenAI,
    model: str,
    change: dict[str, object],
    error: type[openai.APIStatusError],
    needle: str,
) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": 4, **change}

    with pytest.raises(error) as caught:
        client.post("/completions", cast_to=object, body=body)

    assert needle in str(caught.value)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
