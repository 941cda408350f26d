import copy
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_operator.runtime.drift import covers, is_current

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values)
def test_everything_covers_itself(value: Any) -> None:
    assert covers(copy.deepcopy(value), value)


@given(
    st.dictionaries(st.text("abc", max_size=2), json_values, max_size=3),
    st.dictionaries(st.text("xyz", min_size=1, max_size=2), json_values, max_size=3),
)
def test_fields_that_others_added_are_no_drift(intent: dict[str, Any], added: Any) -> None:
    assert covers({**intent, **added}, intent)


@pytest.mark.parametrize(
    ("live", "intent"),
    [
        ("1", "1000m"),
        ("1Gi", "1024Mi"),
        ("500m", "0.5"),
        (1, "1"),
        ("1e3", "1k"),
        (None, {}),
        (None, []),
        (None, ""),
        (None, False),
    ],
)
def test_other_spellings_of_a_value_are_no_drift(live: Any, intent: Any) -> None:
    assert covers({"x": live} if live is not None else {}, {"x": intent})


@pytest.mark.parametrize(
    ("live", "intent"),
    [
        ("1", "2"),
        ("1Gi", "1G"),
        ("abc", "abd"),
        (True, 1),
        (None, 0),
        (None, "a"),
        ("", "a"),
        ([], ["a"]),
        (["a", "b"], ["b", "a"]),
        (["a"], []),
        ({}, {"a": "b"}),
        ("m", "n"),
    ],
)
def test_other_values_are_drift(live: Any, intent: Any) -> None:
    assert not covers({"x": live} if live is not None else {}, {"x": intent})


def test_a_container_that_somebody_added_is_no_drift() -> None:
    live = [{"name": "proxy", "image": "p"}, {"name": "engine", "image": "e", "tty": False}]

    assert covers(live, [{"name": "engine", "image": "e"}])


def test_a_changed_container_is_drift_wherever_it_stands() -> None:
    live = [{"name": "proxy", "image": "p"}, {"name": "engine", "image": "other"}]

    assert not covers(live, [{"name": "engine", "image": "e"}])


def test_an_object_with_another_hash_is_not_current() -> None:
    live = {"metadata": {"annotations": {"quire.dev/spec-hash": "1"}}, "spec": {}}
    intent = {"metadata": {"annotations": {"quire.dev/spec-hash": "2"}}, "spec": {}}

    assert not is_current(live, intent)
    assert is_current(live, copy.deepcopy(live))
