import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.noise import gumbel, key_of, keys_tensor, mix_seed
from quire_engine.runner.sampling.sampler import BadLogitsError, Sampler
from sampling_support import hashed, noise, reference_token, sequence

VOCAB = 24
EOS = (5, 6)


def sample(
    logits: list[list[float]] | torch.Tensor, *sequences: AdmittedSequence, seed: int = 0
) -> list[int]:
    logits_BV = torch.as_tensor(logits, dtype=torch.float32)
    sampler = Sampler(vocab_size=logits_BV.shape[-1], eos_token_ids=EOS, seed=seed)
    rows = [sampler.admit(one) for one in sequences]
    return [token.token_id for token in sampler.sample(logits_BV, rows)]


tokens = st.integers(0, VOCAB - 1)
few_tokens = st.lists(tokens, max_size=8)
# Values without patterns: no cumulative probability should meet a limit exactly.
parameters = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.31, 1.0, 1.7])},
    optional={
        "top_k": st.integers(1, VOCAB + 2),
        "top_p": st.sampled_from([0.0137, 0.3119, 0.8713, 0.9931]),
        "min_p": st.sampled_from([0.0171, 0.1719, 0.9177]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "presence_penalty": st.sampled_from([-1.3, 0.7]),
        "frequency_penalty": st.sampled_from([-0.9, 1.1]),
        "repetition_penalty": st.sampled_from([0.77, 1.31]),
        "logit_bias": st.dictionaries(tokens, st.sampled_from([-100.0, 2.3]), max_size=4),
        "allowed_token_ids": st.lists(tokens, min_size=1, max_size=6),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.lists(tokens, max_size=2),
    },
)


def logits_of(seed: int) -> list[float]:
    """Return random logits with equal ones and -inf among them."""
    random = np.random.default_rng(seed)
    values = random.normal(scale=3.0, size=VOCAB)
    values[random.random(VOCAB) < 0.3] = random.integers(-3, 3)
    values[random.random(VOCAB) < 0.1] = -math.inf
    values[seed % VOCAB] = 1.0
    return [float(value) for value in values.astype(np.float32)]


cases = st.tuples(
    st.integers(0, 2**32).map(logits_of),
    parameters,
    few_tokens.filter(bool),
    few_tokens,
    st.lists(st.lists(tokens, min_size=1, max_size=3), max_size=3),
)


@settings(max_examples=150)
@given(st.lists(cases, min_size=1, max_size=5))
def test_every_row_gets_the_token_of_the_plain_sampler(cases: list[tuple[Any, ...]]) -> None:
    sequences = [
        sequence(index, prompt=prompt, output=output, bad_words=words, **params)
        for index, (_, params, prompt, output, words) in enumerate(cases)
    ]

    found = sample([logits for logits, *_ in cases], *sequences, seed=7)

    assert found == [
        reference_token(
            logits,
            one,
            [*EOS, *(one.params.stop_token_ids or ())],
            mix_seed(7, one.seq_id) if one.params.seed is None else one.params.seed,
        )
        for (logits, *_), one in zip(cases, sequences, strict=True)
    ]


def test_noise_is_the_documented_hash() -> None:
    ids = [0, 1, 49151, 2**31 - 1]
    for seed, position in ((0, 0), (1, 5), (2**64 - 1, 10_000), (0xDEADBEEF12345678, 3)):
        key = keys_tensor([key_of(seed, position)], torch.device("cpu"))[0]
        expected = torch.tensor([noise(seed, position, token) for token in ids])
        found = gumbel(torch.tensor(ids, dtype=torch.int32), key[0], key[1])
        assert torch.allclose(found, expected, rtol=1e-6)
    assert hashed(0, 0, 0) == 0x21E3224C
    assert hashed(42, 7, 49151) == 0x16993873


def test_equal_logits_go_to_the_lowest_id() -> None:
    logits = [0.0, 3.0, 1.0, 3.0, 3.0, 0.0, 0.0, 0.0]

    assert sample([logits], sequence(temperature=0.0)) == [1]
    assert sample([logits], sequence(temperature=1.0, top_k=1)) == [1]


def test_columns_beyond_the_vocabulary_are_never_chosen() -> None:
    sampler = Sampler(vocab_size=4, seed=0)
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0, 99.0, 99.0]] * 2)
    rows = [sampler.admit(sequence(i, temperature=float(i))) for i in range(2)]

    assert all(token.token_id < 4 for token in sampler.sample(logits, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_logits_nor_rows_change(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    sampler = Sampler(vocab_size=50, eos_token_ids=EOS, seed=0)
    rows = [
        sampler.admit(sequence(0, temperature=0.0, logprobs=3)),
        sampler.admit(sequence(1, temperature=0.7, top_p=0.5, min_p=0.1, repetition_penalty=2.0)),
        sampler.admit(sequence(2, logit_bias={3: 5.0}, bad_words=[[1]], min_tokens=3)),
    ]

    first, second = sampler.sample(logits, rows), sampler.sample(logits, rows)

    assert first == second
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"min_tokens": 3}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits_are_an_error_that_names_the_sequence(
    params: dict[str, Any], value: float
) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 4] = value

    with pytest.raises(BadLogitsError, match="NaN or infinite logits for 1 sequences") as caught:
        sample(logits, *(sequence(10 + i, **params) for i in range(3)))
    assert caught.value.seq_ids == [11]


def test_a_row_without_any_finite_logit_is_an_error() -> None:
    with pytest.raises(BadLogitsError):
        sample([[-math.inf] * 8], sequence())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"min_tokens": 2, "allowed_token_ids": [5]}, 5),
        ({"allowed_token_ids": [5], "bad_words": [[5]]}, 5),
        ({"bad_words": [[token] for token in range(VOCAB)]}, 9),
    ],
)
def test_constraints_that_exclude_everything_fall_back_to_what_is_allowed(
    params: dict[str, Any], expected: int
) -> None:
    logits = [[0.0] * VOCAB]
    logits[0][9] = 1.0

    assert sample(logits, sequence(temperature=0.0, **params)) == [expected]


def test_extreme_parameters_never_break_the_logits() -> None:
    logits = [[8.0, -8.0] * 4] * 3

    found = sample(
        logits,
        sequence(0, logit_bias={3: math.inf}, temperature=0.01),
        sequence(1, repetition_penalty=1e-38, temperature=0.01, top_p=0.5),
        sequence(2, logit_bias={0: -math.inf, 99: 1.0}, allowed_token_ids=[0, 2, 99, -1], top_k=1),
    )

    assert found == [3, 0, 2]


def test_a_multi_token_bad_word_bans_only_its_end_after_its_start() -> None:
    logits = [[0.0, 0.0, 0.0, 9.0, 8.0]]

    def pick(prompt: list[int], output: list[int]) -> int:
        one = sequence(prompt=prompt, output=output, bad_words=[[1, 2, 3]], temperature=0.0)
        return sample(logits, one)[0]

    assert pick([0], [1, 2]) == 4
    assert pick([0], [0, 1, 2]) == 4
    assert pick([0], [2, 1]) == 3
    assert pick([0], [2]) == 3
    assert pick([1, 2], []) == 3


def test_min_tokens_holds_back_every_stop_until_it_is_reached() -> None:
    logits = [[0.0, 0.0, 1.0, 0.0, 7.0, 9.0, 8.0]]
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [4]}

    assert sample(logits, sequence(output=[0], **params)) == [2]
    assert sample(logits, sequence(output=[0, 0], **params)) == [5]
    assert sample(logits, sequence(output=[0], ignore_eos=True, **params)) == [5]


def test_state_advances_token_by_token_as_if_admitted_with_all() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    params: dict[str, Any] = {
        "seed": 3,
        "frequency_penalty": 1.9,
        "repetition_penalty": 1.3,
        "min_tokens": 90,
        "bad_words": [[7, 8], [9]],
        "max_tokens": None,
    }
    sampler = Sampler(vocab_size=40, eos_token_ids=EOS)
    row = sampler.admit(sequence(prompt=[1, 2], **params))

    output: list[int] = []
    for _ in range(100):
        (token,) = sampler.sample(logits, [row])
        again = sampler.admit(sequence(prompt=[1, 2], output=output, **params))
        assert sampler.sample(logits, [again]) == [token]
        row.append(token.token_id)
        output.append(token.token_id)

    assert len(set(output)) > 20


def rows_of_many_kinds() -> list[dict[str, Any]]:
    return [
        {"seed": 1},
        {"seed": 2, "temperature": 0.6, "top_p": 0.9},
        {"seed": 3, "top_k": 40},
        {"seed": 4, "min_p": 0.02, "temperature": 1.3},
        {"temperature": 0.0},
        {"seed": 5, "temperature": 2.0, "top_p": 0.99},
        {"seed": 6, "temperature": 0.8, "top_p": 0.95, "top_k": 5000, "repetition_penalty": 1.2},
    ]


def test_a_seeded_row_draws_the_same_in_any_batch() -> None:
    vocab = 6000
    logits = 2 * torch.randn(7, vocab, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(vocab_size=vocab)
    rows = [
        sampler.admit(sequence(i, prompt=range(i, 30), output=[4, 5], **params))
        for i, params in enumerate(rows_of_many_kinds())
    ]
    alone = [sampler.sample(logits[i : i + 1], [row])[0].token_id for i, row in enumerate(rows)]

    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed)).tolist()
        batch = sampler.sample(logits[order], [rows[i] for i in order])
        assert [token.token_id for token in batch] == [alone[i] for i in order]
        part = order[:3]
        batch = sampler.sample(logits[part].bfloat16().float(), [rows[i] for i in part])
        assert len(batch) == 3


def test_flat_distributions_take_the_exact_path() -> None:
    vocab = 9000
    logits = torch.zeros(2, vocab)
    logits[:, ::2] += 1e-3
    seeds = range(60)

    found = {
        token
        for seed in seeds
        for token in sample(
            logits,
            sequence(0, seed=seed, top_p=0.25),
            sequence(1, seed=seed + 1000, top_k=2000),
        )
    }

    # The even tokens alone hold half of the mass: the lowest of them fill the limits.
    assert all(token % 2 == 0 and token < 4600 for token in found)
    assert len(found) > 100


def test_unseeded_sequences_differ_but_repeat_with_the_engine_s_seed() -> None:
    logits = torch.zeros(50, 1000)
    sequences = [sequence(i) for i in range(50)]

    first = sample(logits, *sequences, seed=0)

    assert len(set(first)) > 40
    assert sample(logits, *sequences, seed=0) == first
    assert sample(logits, *sequences, seed=1) != first


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("varies", ["position", "seed", "seq_id"])
@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9999999}])
def test_draws_follow_the_softmax(varies: str, limits: dict[str, Any]) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -2.0, 1.5, -3.0])
    num_draws, temperature = 6_000, 0.8
    sampler = Sampler(vocab_size=8, seed=0)
    rows = []
    for draw in range(num_draws):
        seed = {"position": 5, "seed": draw, "seq_id": None}[varies]
        row = sampler.admit(sequence(draw, seed=seed, temperature=temperature, **limits))
        row.num_output_tokens = draw if varies == "position" else 0
        rows.append(row)

    drawn = [token.token_id for token in sampler.sample(logits.repeat(num_draws, 1), rows)]

    counts = torch.tensor(drawn).bincount(minlength=8)
    # 7 degrees of freedom: 24.3 is exceeded once in a thousand; the draws are fixed.
    assert chi_square(counts, (logits / temperature).softmax(0)) < 24.3
    pairs = torch.tensor(drawn[:-1]) * 8 + torch.tensor(drawn[1:])
    p = (logits / temperature).softmax(0)
    # 63 degrees of freedom: consecutive draws are independent.
    likely = (p[:, None] * p[None, :]).flatten()
    assert chi_square(pairs.bincount(minlength=64), likely) < 104


def test_sampling_gives_back_the_threads_that_it_does_not_use() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sample([[0.0, 1.0]], sequence())
        with pytest.raises(BadLogitsError):
            sample([[math.nan, 1.0]], sequence())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
