from typing import Any

import numpy as np
import pytest

from quire_engine.errors import InvalidRequestError
from quire_engine.sampling_params import RequestOutputKind, SamplingParams


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", "warm", "a number, got 'warm' of type str"),
        ("temperature", True, "a number, got True of type bool"),
        ("n", 1.5, "an integer, got 1.5 of type float"),
        ("n", None, "an integer, got None of type NoneType"),
        ("max_tokens", "16", "an integer, got '16' of type str"),
        ("stop", 3, "a string or a list of strings, got 3 of type int"),
        ("stop", [b"x"], "a string or a list of strings, got [b'x'] of type list"),
        ("stop_token_ids", 5, "a list of integers, got 5 of type int"),
        ("stop_token_ids", ["5"], "a list of integers, got ['5'] of type list"),
        ("bad_words", "word", "a list of strings, got 'word' of type str"),
        ("ignore_eos", 1, "true or false, got 1 of type int"),
        ("logit_bias", [1], "a mapping of token ids to numbers, got [1] of type list"),
        ("logit_bias", {"x": 1}, "a mapping with token ids as keys, got 'x' of type str"),
        ("logit_bias", {1: "x"}, "a number, got 'x' of type str"),
        ("output_kind", 7, "a RequestOutputKind, got 7"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(
    field: str, value: Any, expected: str
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        SamplingParams(**{field: value})

    assert str(refusal.value) == f"{field} must be {expected}"
    assert refusal.value.param == field


def test_a_long_wrong_value_is_shown_only_in_part() -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        SamplingParams(stop_token_ids=["x" * 10_000])  # type: ignore[list-item]  # on purpose

    assert len(str(refusal.value)) < 200


def test_numbers_of_numpy_and_tuples_become_plain_values() -> None:
    fields: dict[str, Any] = {
        "seed": np.int64(7),
        "temperature": np.float32(0.5),
        "top_p": 1,
        "stop": ("a", "b"),
        "stop_token_ids": np.array([1, 2]),
        "logit_bias": {"5": 1},
        "output_kind": 2,
    }

    params = SamplingParams(**fields)

    assert (params.seed, params.temperature, params.top_p) == (7, 0.5, 1.0)
    assert (type(params.seed), type(params.temperature)) == (int, float)
    assert (params.stop, params.stop_token_ids) == (["a", "b"], [1, 2])
    assert {type(token_id) for token_id in params.stop_token_ids or ()} == {int}
    assert params.logit_bias == {5: 1.0}
    assert params.output_kind is RequestOutputKind.FINAL_ONLY


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(InvalidRequestError, match="seed must be in"):
        SamplingParams(seed=seed)


def test_seed_minus_one_means_no_seed() -> None:
    assert SamplingParams(seed=-1).seed is None


def test_a_tiny_temperature_is_raised_and_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0.001).temperature == 0.01
    assert SamplingParams(temperature=0.0, top_p=0.5, top_k=5).top_k == 0


def test_greedy_with_several_completions_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="n must be 1"):
        SamplingParams(temperature=0.0, n=2)
