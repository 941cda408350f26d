"""Speeds that are differences of times, on a machine that does other things too."""

from collections.abc import Sequence

import pytest

from quire.bench.compare import CompareConfig, Comparison
from quire_engine.errors import ConfigError

STEP_S, STALL_S = 0.1, 20.0


class StalledGenerator:
    """Takes a step a token, and once in a while much longer."""

    def __init__(self, *stalled: int) -> None:
        """`stalled` are the calls, counted from 0, that take longer."""
        self.now = 0.0
        self._stalled = stalled
        self._num_calls = 0

    def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        self.now += num_tokens * STEP_S + STALL_S * (self._num_calls in self._stalled)
        self._num_calls += 1


def decode_speed(generator: StalledGenerator) -> float:
    """Return the speed of one sequence: calls 1 and 2 of the five in each round."""
    config = CompareConfig(num_rounds=3, decode_len=8)
    other = StalledGenerator()
    comparison = Comparison(config, 100, clock=lambda: generator.now + other.now)
    return comparison.speeds(generator, other)[1].quire


def test_a_single_round_that_took_less_than_nothing_changes_no_speed() -> None:
    quiet = decode_speed(StalledGenerator())

    assert quiet == pytest.approx(1 / STEP_S)
    assert decode_speed(StalledGenerator(5 + 1)) == pytest.approx(quiet)
    assert decode_speed(StalledGenerator(5 + 2)) == pytest.approx(quiet)


def test_a_speed_that_cannot_be_told_from_noise_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"decode, batch 1: 7 tokens took -19300\.000 ms by the"):
        decode_speed(StalledGenerator(5 + 1, 10 + 1))
