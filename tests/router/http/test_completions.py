"""Text completions as the official client sees them, whole."""

from typing import Any

from openai.types import Completion

from http_support import Served


async def complete(served: Served, **fields: Any) -> Completion:
    client = await served.client()
    options = {"model": "fake", "prompt": "hi", **fields}
    answer: Completion = await client.completions.create(**options)
    return answer


async def test_an_answer_has_everything_that_clients_expect(served: Served) -> None:
    answer = await complete(served)

    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Hello!", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)


async def test_sixteen_tokens_are_the_default(served: Served) -> None:
    served.script.answer = "x" * 40

    answer = await complete(served)

    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"


async def test_the_default_shrinks_to_what_fits(served: Served) -> None:
    await complete(served, prompt="x" * 510)

    assert served.script.requests[0].sampling.max_tokens == 2


async def test_batches_are_numbered_prompt_by_prompt(served: Served) -> None:
    answer = await complete(served, prompt=["a", "bc", "def"], n=2, max_tokens=1)

    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [len(request.prompt_token_ids) for request in served.script.requests] == [1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6)


async def test_token_ids_are_prompts_too(served: Served) -> None:
    await complete(served, prompt=[104, 105])
    await complete(served, prompt=[[104], [105, 106]])

    prompts = [list(request.prompt_token_ids) for request in served.script.requests]
    assert prompts == [[104, 105], [104], [105, 106]]


async def test_echo_repeats_the_prompt_of_each_choice(served: Served) -> None:
    answer = await complete(served, prompt=["one ", "two "], echo=True)
    ids = await complete(served, prompt=[104, 105], echo=True)

    assert [choice.text for choice in answer.choices] == ["one Hello!", "two Hello!"]
    assert ids.choices[0].text == "hiHello!"


async def test_logprobs_line_up_with_the_text(served: Served) -> None:
    answer = await complete(served, logprobs=2, max_tokens=3)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["H", "e", "l"]
    assert logprobs.token_logprobs == [-0.5, -0.5, -0.5]
    assert logprobs.text_offset == [0, 1, 2]
    # The chosen token has rank 2 and is among the most likely two.
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"A": -0.25, "H": -0.5}


async def test_echo_with_logprobs_covers_the_prompt(served: Served) -> None:
    answer = await complete(served, echo=True, logprobs=1, max_tokens=1)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["h", "i", "H"]
    assert logprobs.token_logprobs == [None, -0.5, -0.5]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] is None


async def test_a_prompt_can_be_scored_without_generating(served: Served) -> None:
    answer = await complete(served, echo=True, logprobs=0, max_tokens=0)

    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("hi", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["h", "i"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


async def test_best_of_returns_the_most_likely(served: Served) -> None:
    # Completion i has logprobs of -0.5 - i.
    answer = await complete(served, best_of=3, n=1, logprobs=0, max_tokens=1)

    assert served.script.requests[0].sampling.n == 3
    [choice] = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [-0.5]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_extras_are_returned_per_choice(served: Served) -> None:
    answer = await complete(
        served, max_tokens=1, extra_body={"return_token_ids": True, "prompt_logprobs": 0}
    )

    choice = answer.choices[0].model_dump()
    assert choice["prompt_token_ids"] == [104, 105]
    assert choice["token_ids"] == [72]
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1]["105"]["decoded_token"] == "i"


async def test_a_failing_prompt_starts_none_of_the_batch(served: Served) -> None:
    status, _ = await served.post("/v1/completions", {"prompt": ["fine", "x" * 600]})

    assert status == 400
    assert served.script.requests == []
