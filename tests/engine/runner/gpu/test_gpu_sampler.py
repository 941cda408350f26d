"""The sampler on the GPU against the plain sampler that `sampling_support` spells out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.runner.gpu.sampler import GpuSampler, Mode
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.plan import AdmittedSequence
from quire_engine.runner.sampling.noise import mix_seed
from quire_engine.runner.sampling.sampler import Sampler
from sampling_support import reference_token, sequence

VOCAB = 24
NUM_ROWS = 8


class Bench:
    """A sampler with everything around it that a runner has."""

    def __init__(self, device: str, vocab_size: int, **options: Any) -> None:
        self.device = torch.device(device)
        self.staging = Staging(1 << 20, self.device)
        self.sampler = GpuSampler(
            max_num_rows=NUM_ROWS, vocab_size=vocab_size, device=self.device, **options
        )
        self.last_token_R = torch.zeros(NUM_ROWS, dtype=torch.int32, device=self.device)
        self.is_bad: list[int] = []

    def admit(self, sequences: dict[int, AdmittedSequence]) -> None:
        for row, one in sequences.items():
            self.sampler.stage(row, one)
        self.sampler.put_staged(self.staging)
        self.staging.send()
        self.sampler.apply_staged()

    def sample(
        self, logits: Sequence[Sequence[float]] | torch.Tensor, rows: Sequence[int], mode: Mode
    ) -> list[int]:
        rows_B = torch.tensor(rows, dtype=torch.int32, device=self.device)
        tokens_B, is_bad_B = torch.full_like(rows_B, -7), torch.full_like(rows_B, -7)
        self.sampler.sample(
            torch.as_tensor(logits).to(self.device),
            rows_B,
            tokens_B,
            is_bad_B,
            self.last_token_R,
            mode,
        )
        assert torch.equal(self.last_token_R[rows_B.long()], tokens_B)
        self.is_bad = is_bad_B.tolist()
        return tokens_B.tolist()


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


@settings(max_examples=12, deadline=None)
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

    for _ in range(3):
        found = bench.sample(logits, range(6), "random")
        assert found == [token.token_id for token in cpu.sample(logits, rows)]
        for row, token in zip(rows, found, strict=True):
            row.append(token)


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
