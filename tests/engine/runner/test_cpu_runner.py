import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.model.layers import has_packed_linear
from quire_engine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
PROMPTS = [[(7 * i + 3 * p) % 211 for i in range(n)] for p, n in enumerate((1, 5, 16, 33, 70, 150))]


@pytest.fixture(scope="module")
def alone(driver: Any) -> list[list[int]]:
    return [driver.generate([prompt], 20)[0] for prompt in PROMPTS]


def test_tokens_do_not_depend_on_the_batch(driver: Any, alone: list[list[int]]) -> None:
    assert driver.generate(PROMPTS, 20) == alone


@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 100])
def test_tokens_do_not_depend_on_the_chunk_size(
    driver: Any, alone: list[list[int]], chunk: int
) -> None:
    assert driver.generate(PROMPTS, 20, chunk=chunk) == alone


def test_a_sequence_that_comes_back_after_preemption_continues_as_before(
    driver: Any, alone: list[list[int]]
) -> None:
    first = 10_000
    driver.admit(first, PROMPTS[3] + alone[3][:9], GREEDY, num_prompt=len(PROMPTS[3]))
    while len(driver.tokens[first]) < len(PROMPTS[3]) + 20:
        driver.step({first: driver.left(first)})
    driver.drop(first)
    assert driver.tokens[first][len(PROMPTS[3]) :] == alone[3]


def test_a_step_samples_only_where_the_last_token_is_reached(driver: Any) -> None:
    driver.admit(20_000, PROMPTS[4], GREEDY)
    driver.admit(20_001, PROMPTS[1], GREEDY)
    result = driver.step({20_000: 30, 20_001: len(PROMPTS[1])})
    driver.drop(20_000)
    driver.drop(20_001)
    assert list(result.token_ids) == [20_001]


def test_a_plan_without_tokens_only_drops(driver: Any) -> None:
    driver.admit(30_000, PROMPTS[1], GREEDY)
    driver.step({30_000: 5})
    driver.drop(30_000)
    assert driver.step({}).token_ids == {}
    driver.admit(30_000, PROMPTS[1], GREEDY)  # the row is free again
    driver.step({30_000: 5})
    driver.drop(30_000)


def test_prompt_logprobs_come_in_order_whatever_the_chunks(driver: Any) -> None:
    prompt = PROMPTS[5]
    params = SamplingParams(temperature=0.0, max_tokens=None, prompt_logprobs=2, logprobs=1)

    def collect(seq_id: int, chunk: int) -> list[Any]:
        driver.admit(seq_id, prompt, params)
        found: list[Any] = []
        while driver.left(seq_id):
            result = driver.step({seq_id: min(chunk, driver.left(seq_id))})
            found += result.prompt_logprobs.get(seq_id, [])
            if result.token_ids:
                assert result.logprobs[seq_id].token_ids[0] == result.token_ids[seq_id]
                break
        driver.drop(seq_id)
        return found

    whole, chunked = collect(40_000, 1000), collect(40_001, 13)
    assert [entry.token_ids[0] for entry in whole] == prompt[1:]
    assert [len(entry.token_ids) for entry in whole] == [3] * (len(prompt) - 1)
    for one, other in zip(whole, chunked, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_reused_prefix_gives_the_same_tokens(driver: Any, alone: list[list[int]]) -> None:
    prompt = PROMPTS[5]
    driver.admit(50_000, prompt, GREEDY)
    driver.step({50_000: len(prompt)})
    shared = driver.blocks[50_000][:8]
    driver.admit(50_001, prompt, GREEDY)
    driver.free += driver.blocks[50_001][:8]
    driver.blocks[50_001][:8] = shared
    admitted = driver.plan.admitted[0]
    admitted.block_ids[:8], admitted.num_computed_tokens = shared, 128
    driver.computed[50_001] = 128
    for _ in range(5):
        driver.step({50_001: driver.left(50_001)})
    assert driver.tokens[50_001][len(prompt) :] == alone[5][:5]
    del driver.blocks[50_001][:8]
    driver.drop(50_001)
    driver.drop(50_000)


@pytest.fixture(scope="module")
def bfloat16(build: Any) -> Any:
    if not has_packed_linear(torch.device("cpu"), torch.bfloat16):
        pytest.skip("oneDNN has no bfloat16 here")
    return build(dtype="bfloat16")


@pytest.fixture(scope="module", params=[None, 24])
def recorded(request: pytest.FixtureRequest, build: Any) -> Any:
    """A bfloat16 driver that keeps the logits of every sampled row, with and without windows."""
    if not has_packed_linear(torch.device("cpu"), torch.bfloat16):
        pytest.skip("oneDNN has no bfloat16 here")
    overrides = {"architectures": ["MistralForCausalLM"], "sliding_window": request.param}
    return build(dtype="bfloat16", hf_overrides=overrides)


def logits_of(
    driver: Any, prompts: Sequence[Sequence[int]], watched: int, chunks: Sequence[int]
) -> list[Any]:
    """Return full logprobs of 6 tokens of one prompt; step k computes chunks[k % len] of each."""
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True, logprobs=-1)
    base = max(driver.tokens, default=0) + 1
    for index, prompt in enumerate(prompts):
        driver.admit(base + index, prompt, params)
    found: list[Any] = []
    step = 0
    while len(found) < 6:
        chunk = chunks[step % len(chunks)]
        result = driver.step(
            {base + i: min(chunk, driver.left(base + i)) for i in range(len(prompts))}
        )
        if base + watched in result.logprobs:
            found.append(result.logprobs[base + watched])
        step += 1
    for index in range(len(prompts)):
        driver.drop(base + index)
    return found


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    num_others=st.integers(0, 8),
    length=st.integers(1, 200),
    chunks=st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_bfloat16_logits_have_the_same_bits_in_any_batch_and_any_chunks(
    recorded: Any, seed: int, num_others: int, length: int, chunks: list[int]
) -> None:
    rng = random.Random(seed)
    prompts = [[rng.randrange(211) for _ in range(rng.randint(1, 150))] for _ in range(num_others)]
    watched = rng.randint(0, num_others)
    prompts.insert(watched, [rng.randrange(211) for _ in range(length)])

    expected = logits_of(recorded, [prompts[watched]], 0, [1000])

    assert logits_of(recorded, prompts, watched, chunks) == expected


def test_seeded_sampling_does_not_depend_on_the_batch(bfloat16: Any) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=None, ignore_eos=True)
    alone = [bfloat16.generate([prompt], 12, params=params)[0] for prompt in PROMPTS]
    assert bfloat16.generate(PROMPTS, 12, params=params) == alone
    assert bfloat16.generate(PROMPTS, 12, params=params, chunk=9) == alone
