"""The sampler on the GPU against the plain sampler that `sampling_support` spells out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.gpu.sampler import GpuSampler, Mode, PlainMode
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.noise import mix_seed
from quire_engine.runner.sampling.sampler import Sampler
from sampling_support import reference_token, sequence

pytestmark = pytest.mark.timeout(300)

VOCAB = 24
NUM_ROWS = 8
EOS = (5, 6)


class Bench:
    """A sampler with everything around it that a runner has."""

    def __init__(self, device: str, vocab_size: int, **options: Any) -> None:
        self.device = torch.device(device)
        self.staging = Staging(1 << 20, self.device)
        self.sampler = GpuSampler(
            max_num_rows=NUM_ROWS, vocab_size=vocab_size, device=self.device, **options
        )
        self.tokens_RL = torch.zeros((NUM_ROWS, 256), dtype=torch.int32, device=self.device)
        self.lens = [0] * NUM_ROWS
        self.modes: dict[int, Mode] = {}
        self.is_bad: list[int] = []
        self.logprobs: dict[int, TokenLogprobs] = {}

    def admit(self, sequences: dict[int, AdmittedSequence]) -> None:
        for row, one in sequences.items():
            self.modes[row] = self.sampler.stage(row, one)
            self.lens[row] = len(one.token_ids)
            self.tokens_RL[row, : self.lens[row]] = torch.tensor(one.token_ids)
        self.sampler.put_staged(self.staging)
        self.staging.send()
        self.sampler.apply_staged()

    def sample(
        self, logits: Sequence[Sequence[float]] | torch.Tensor, rows: Sequence[int], mode: Mode
    ) -> list[int]:
        logits_BV = torch.as_tensor(logits).to(self.device)
        rows_B = torch.tensor(rows, dtype=torch.int32, device=self.device)
        tokens_B, is_bad_B = torch.full_like(rows_B, -7), torch.full_like(rows_B, -7)
        out = tokens_B, is_bad_B
        if mode == "full":
            scores = self.sampler.sample_full(logits_BV, rows_B, rows, self.tokens_RL, *out)
            self.logprobs = scores.read() if scores is not None else {}
        else:
            self.sampler.sample(logits_BV, rows_B, *out, mode)
        self.is_bad = is_bad_B.tolist()
        tokens = tokens_B.tolist()
        for row, token in zip(rows, tokens, strict=True):
            self.tokens_RL[row, self.lens[row]] = token
            self.lens[row] += 1
        return tokens


# Values without patterns: no cumulative probability should meet a limit exactly.
limits = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.31, 1.0, 1.7])},
    optional={
        "top_k": st.integers(1, VOCAB + 2),
        "top_p": st.sampled_from([0.0137, 0.3119, 0.8713, 0.9931]),
        "min_p": st.sampled_from([0.0171, 0.1719, 0.9177]),
        "seed": st.integers(-(2**63), 2**63 - 1),
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


outputs = st.lists(st.integers(0, VOCAB - 1), max_size=8)
cases = st.tuples(st.integers(0, 2**32).map(logits_of), limits, outputs)


@settings(max_examples=8, deadline=None)
@given(cases=st.lists(cases, min_size=1, max_size=5))
def test_every_row_gets_the_token_of_the_plain_sampler(
    device: str, cases: list[tuple[list[float], dict[str, Any], list[int]]]
) -> None:
    bench = Bench(device, VOCAB, seed=7)
    rows = [(3 * slot + 1) % NUM_ROWS for slot in range(len(cases))]
    sequences = [
        sequence(slot, output=output, **params) for slot, (_, params, output) in enumerate(cases)
    ]

    bench.admit(dict(zip(rows, sequences, strict=True)))
    found = bench.sample([logits for logits, *_ in cases], rows, "random")

    assert found == [
        reference_token(
            logits,
            one,
            [],
            mix_seed(7, one.seq_id) if one.params.seed is None else one.params.seed,
        )
        for (logits, *_), one in zip(cases, sequences, strict=True)
    ]


@pytest.mark.parametrize("mode", ["greedy", "random"])
def test_equal_logits_go_to_the_lowest_id(device: str, mode: Mode) -> None:
    bench = Bench(device, 8)
    bench.admit({0: sequence(temperature=0.0)})

    assert bench.sample([[0.0, 3.0, 1.0, 3.0, 3.0, 0.0, 0.0, 0.0]], [0], mode) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vocabulary_of_several_chunks_draws_as_on_the_cpu(
    device: str, dtype: torch.dtype
) -> None:
    vocab = 9001
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, vocab + 7, generator=generator).mul(2).to(dtype)
    sequences = [
        sequence(0, temperature=0.0),
        sequence(1),
        sequence(2, temperature=0.8, top_p=0.9),
        sequence(3, temperature=1.3, top_k=40),
        sequence(4, min_p=0.05),
        sequence(5, temperature=0.7, top_k=5000, top_p=0.8),
    ]
    cpu = Sampler(vocab_size=vocab)
    rows = [cpu.admit(one) for one in sequences]
    bench = Bench(device, vocab)
    bench.admit(dict(enumerate(sequences)))

    for _ in range(2):
        found = bench.sample(logits, range(6), "random")
        assert found == [token.token_id for token in cpu.sample(logits, rows)]
        for row, token in zip(rows, found, strict=True):
            row.append(token)


def test_a_row_of_few_distinct_logits_is_searched_whole(device: str) -> None:
    vocab = 9001
    logits = torch.zeros(3, vocab)
    logits[:, ::2] += 1e-3
    sequences = [
        sequence(0, seed=5, top_p=0.25),
        sequence(1, seed=6, top_k=2000),
        sequence(2, seed=7, top_k=4600, top_p=0.9, temperature=0.7),
    ]
    cpu = Sampler(vocab_size=vocab)
    bench = Bench(device, vocab)
    bench.admit(dict(enumerate(sequences)))

    found = bench.sample(logits, range(3), "random")

    rows = [cpu.admit(one) for one in sequences]
    assert found == [token.token_id for token in cpu.sample(logits, rows)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [32000, 128256, 151936])
@pytest.mark.parametrize("scale", [0.05, 0.4, 2.0, 6.0])
def test_real_vocabularies_draw_as_on_the_cpu(
    device: str, dtype: torch.dtype, vocab: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(NUM_ROWS, vocab, generator=generator).mul(scale).to(dtype)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.2},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"top_k": 50},
        {"min_p": 0.05},
        {"top_k": 6000, "top_p": 0.7},
        {"top_p": 0.99, "min_p": 0.001, "temperature": 1.5},
    ]
    sequences = [sequence(slot, seed=slot, **kind) for slot, kind in enumerate(kinds)]
    cpu = Sampler(vocab_size=vocab)
    rows = [cpu.admit(one) for one in sequences]
    bench = Bench(device, vocab)
    bench.admit(dict(enumerate(sequences)))

    for _ in range(5):
        found = bench.sample(logits, range(NUM_ROWS), "random")
        assert found == [token.token_id for token in cpu.sample(logits, rows)]
        for row, token in zip(rows, found, strict=True):
            row.append(token)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["greedy", "random"])
def test_sampling_can_be_captured(device: str, mode: PlainMode) -> None:
    vocab = 50_000
    logits = torch.randn(NUM_ROWS, vocab, device=device)
    params: dict[str, Any] = {"temperature": 0.0} if mode == "greedy" else {"top_p": 0.9}
    sequences = {row: sequence(row, **params) for row in range(NUM_ROWS)}
    eager, captured = Bench(device, vocab), Bench(device, vocab)
    rows_B = torch.arange(NUM_ROWS, dtype=torch.int32, device=device)
    tokens_B, is_bad_B = torch.zeros_like(rows_B), torch.zeros_like(rows_B)
    arguments = logits, rows_B, tokens_B, is_bad_B, mode
    eager.admit(sequences)
    captured.sampler.sample(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.sampler.sample(*arguments)
    captured.admit(sequences)

    for _ in range(3):
        graph.replay()
        assert tokens_B.tolist() == eager.sample(logits, range(NUM_ROWS), mode)


@pytest.mark.parametrize("mode", ["greedy", "random"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_logits_are_flagged_for_their_row_alone(
    device: str, value: float, mode: Mode
) -> None:
    bench = Bench(device, 9)
    temperature = 0.0 if mode == "greedy" else 0.8
    bench.admit({row: sequence(row, temperature=temperature, top_p=0.5) for row in range(3)})
    logits = torch.zeros(3, 9)
    logits[1, 4 if value != -math.inf else slice(None)] = value

    tokens = bench.sample(logits, [0, 1, 2], mode)

    assert bench.is_bad == [0, 1, 0]
    assert tokens[1] == 0


few_tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
everything = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.31, 1.0, 1.7])},
    optional={
        "top_p": st.sampled_from([0.0137, 0.3119, 0.8713, 0.9931]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "presence_penalty": st.sampled_from([-1.3, 0.7]),
        "frequency_penalty": st.sampled_from([-0.9, 1.1]),
        "repetition_penalty": st.sampled_from([0.77, 1.31]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 2.3]), max_size=4
        ),
        "allowed_token_ids": st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.lists(st.integers(0, VOCAB - 1), max_size=2),
    },
)
words = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), max_size=3)
edited_cases = st.tuples(
    st.integers(0, 2**32).map(logits_of), everything, few_tokens.filter(bool), few_tokens, words
)


@settings(max_examples=8, deadline=None)
@given(cases=st.lists(edited_cases, min_size=1, max_size=5))
def test_every_edit_gives_the_token_of_the_plain_sampler(
    device: str, cases: list[tuple[Any, ...]]
) -> None:
    bench = Bench(device, VOCAB, seed=7, eos_token_ids=EOS)
    rows = [(3 * slot + 1) % NUM_ROWS for slot in range(len(cases))]
    sequences = [
        sequence(slot, prompt=prompt, output=output, bad_words=banned, **params)
        for slot, (_, params, prompt, output, banned) in enumerate(cases)
    ]

    bench.admit(dict(zip(rows, sequences, strict=True)))
    found = bench.sample([logits for logits, *_ in cases], rows, "full")

    assert found == [
        reference_token(
            logits,
            one,
            [*EOS, *(one.params.stop_token_ids or ())],
            mix_seed(7, one.seq_id) if one.params.seed is None else one.params.seed,
        )
        for (logits, *_), one in zip(cases, sequences, strict=True)
    ]


def test_state_advances_on_the_device_as_if_admitted_with_all(device: str) -> None:
    params: dict[str, Any] = {
        "seed": 3,
        "frequency_penalty": 1.9,
        "repetition_penalty": 1.3,
        "min_tokens": 9,
        "bad_words": [[7, 8], [9], [3, 4, 5]],
    }
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    bench, again = Bench(device, VOCAB, eos_token_ids=EOS), Bench(device, VOCAB, eos_token_ids=EOS)
    bench.admit({2: sequence(prompt=[1, 2], **params)})

    output: list[int] = []
    for _ in range(15):
        again.admit({5: sequence(prompt=[1, 2], output=output, **params)})
        (token,) = bench.sample(logits, [2], "full")
        assert again.sample(logits, [5], "full") == [token]
        output.append(token)

    assert len(set(output)) > 6


def test_a_row_keeps_nothing_of_the_sequence_before(device: str) -> None:
    bench = Bench(device, VOCAB)
    logits = [[0.0] * 3 + [2.0, 1.0] + [0.0] * (VOCAB - 5)]
    bench.admit(
        {
            1: sequence(
                temperature=0.0,
                allowed_token_ids=[0],
                logit_bias={7: 9.0},
                repetition_penalty=2.0,
                bad_words=[[3], [1, 2]],
                logprobs=2,
            )
        }
    )
    assert bench.sample(logits, [1], "full") == [0]

    bench.admit({1: sequence(temperature=0.0, frequency_penalty=0.6)})

    assert [bench.sample(logits, [1], "full") for _ in range(4)] == [[3], [3], [4], [3]]
    assert bench.logprobs == {}


def test_more_slots_than_are_edited_at_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_engine.runner.gpu.sampler.MAX_EDITED_SLOTS", 2)
    bench = Bench(device, VOCAB)
    bench.admit(
        {row: sequence(row, temperature=0.0, logit_bias={row: 9.0}) for row in range(NUM_ROWS)}
    )

    assert bench.sample([[0.0] * VOCAB] * 5, [4, 0, 7, 2, 6], "full") == [4, 0, 7, 2, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_the_cpu(device: str, dtype: torch.dtype) -> None:
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, 3:9] = logits[:, 3:4]
    logits[0, 1], logits[0, 2] = 0.0, -0.0
    sequences = [
        sequence(0, temperature=0.0, logprobs=3),
        sequence(1, temperature=0.7),
        sequence(2, seed=1, logprobs=-1),
        sequence(3, seed=2, logprobs=0, repetition_penalty=1.4),
        sequence(4, seed=3, logprobs=VOCAB + 5, logit_bias={3: 50.0}),
    ]
    cpu = Sampler(vocab_size=VOCAB)
    bench = Bench(device, VOCAB)
    bench.admit(dict(enumerate(sequences)))

    found = bench.sample(logits, range(5), "full")

    wanted = cpu.sample(logits, [cpu.admit(one) for one in sequences])
    assert found == [token.token_id for token in wanted]
    assert sorted(bench.logprobs) == [0, 2, 3, 4]
    for slot, one in bench.logprobs.items():
        expected = wanted[slot].logprobs
        assert expected is not None
        assert (one.token_ids, one.ranks) == (expected.token_ids, expected.ranks)
        assert one.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_broken_logits_are_flagged_even_where_they_are_masked(device: str) -> None:
    bench = Bench(device, VOCAB)
    bench.admit(
        {row: sequence(row, allowed_token_ids=[1], repetition_penalty=1e-3) for row in range(2)}
    )
    logits = torch.zeros(2, VOCAB)
    logits[1, 5] = math.nan

    bench.sample(logits, [0, 1], "full")

    assert bench.is_bad == [0, 1]


@pytest.mark.parametrize(
    ("params", "mode"),
    [
        ({"temperature": 0.0}, "greedy"),
        ({}, "random"),
        ({"top_k": 3}, "random"),
        ({"temperature": 0.0, "logprobs": 0}, "full"),
        ({"temperature": 0.0, "presence_penalty": 0.1}, "full"),
        ({"min_tokens": 2, "stop_token_ids": [3]}, "full"),
        ({"bad_words": [[1]]}, "full"),
    ],
)
def test_a_sequence_says_the_mode_that_it_needs(
    device: str, params: dict[str, Any], mode: Mode
) -> None:
    bench = Bench(device, VOCAB)

    bench.admit({0: sequence(**params)})

    assert bench.modes == {0: mode}
