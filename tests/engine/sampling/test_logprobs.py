import math

import pytest
import torch
from hypothesis import given, strategies as st

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.sampling.logprobs import prompt_logprobs, token_logprobs, top_tokens
from quire_engine.runner.sampling.sampler import Sampler
from sampling_support import sequence

# A few values only: ties everywhere, also at the end of what is asked for.
rows = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=12)


def expected(row: list[float], token_id: int, num_top: int) -> TokenLogprobs:
    norm = math.log(sum(map(math.exp, row)))
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    num = len(row) if num_top < 0 else min(num_top, len(row))
    ids = [token_id, *order[:num]]
    return TokenLogprobs(
        token_ids=ids,
        logprobs=[row[token] - norm for token in ids],
        ranks=[order.index(token) + 1 for token in ids],
    )


def assert_same(found: TokenLogprobs, wanted: TokenLogprobs) -> None:
    assert (found.token_ids, found.ranks) == (wanted.token_ids, wanted.ranks)
    assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)


@given(rows, st.data())
def test_logprobs_and_ranks_are_those_of_a_full_sort(row: list[float], data: st.DataObject) -> None:
    token_id = data.draw(st.integers(0, len(row) - 1))
    num_top = data.draw(st.integers(-1, len(row) + 2))

    (found,) = token_logprobs(torch.tensor([row]), [token_id], [num_top])

    assert_same(found, expected(row, token_id, num_top))


def test_rows_may_ask_for_different_numbers() -> None:
    logits = [[0.0, 2.0, 1.0], [5.0, 5.0, 0.0], [1.0, 1.0, 1.0]]
    num_top = [0, -1, 2]

    found = token_logprobs(torch.tensor(logits), [2, 1, 2], num_top)

    for row, token_id, num, one in zip(logits, [2, 1, 2], num_top, found, strict=True):
        assert_same(one, expected(row, token_id, num))


def test_long_prompts_are_done_in_slices_with_the_same_result() -> None:
    logits = torch.randn(150, 30, generator=torch.Generator().manual_seed(0))
    token_ids = [position % 30 for position in range(150)]

    found = prompt_logprobs(logits, token_ids, 2)

    assert len(found) == 150
    for row, token_id, one in zip(logits.tolist(), token_ids, found, strict=True):
        assert_same(one, expected(row, token_id, 2))


def test_an_empty_chunk_has_no_logprobs() -> None:
    assert prompt_logprobs(torch.empty(0, 5), [], 3) == []


def test_low_precision_logits_are_taken_as_they_are() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).bfloat16()

    found = token_logprobs(logits, [1, 2, 3, 4], [5] * 4)

    for row, token_id, one in zip(logits.float().tolist(), [1, 2, 3, 4], found, strict=True):
        assert_same(one, expected(row, token_id, 5))


def test_sampled_logprobs_are_of_the_unmodified_logits() -> None:
    logits = [[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 0.0]]
    sampler = Sampler(vocab_size=4)
    admitted = [
        sampler.admit(
            sequence(0, temperature=0.1, logit_bias={3: 50.0}, bad_words=[[0]], logprobs=2)
        ),
        sampler.admit(sequence(1, temperature=0.0)),
        sampler.admit(sequence(2, temperature=0.0, logprobs=0)),
    ]

    biased, plain, chosen = sampler.sample(torch.tensor(logits), admitted)

    assert (biased.token_id, plain.logprobs) == (3, None)
    assert biased.logprobs is not None
    assert_same(biased.logprobs, expected(logits[0], 3, 2))
    assert chosen.logprobs is not None
    assert_same(chosen.logprobs, expected(logits[2], 2, 0))


def test_the_greedy_token_has_rank_one_even_among_equals() -> None:
    sampler = Sampler(vocab_size=5)
    row = sampler.admit(sequence(temperature=0.0, logprobs=3))

    (token,) = sampler.sample(torch.tensor([[1.0, 4.0, 4.0, 4.0, 0.0]]), [row])

    assert token.logprobs is not None
    assert token.logprobs.token_ids == [1, 1, 2, 3]
    assert token.logprobs.ranks == [1, 1, 2, 3]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=60), st.integers(1, 60))
def test_top_tokens_prefer_low_ids_among_equals(row: list[int], num_top: int) -> None:
    _, ids = top_tokens(torch.tensor([row], dtype=torch.float32), num_top)

    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    assert ids[0].tolist() == order[:num_top]
