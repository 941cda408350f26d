"""Checks of the types of a request's fields, for values that no type checker has seen.

A check returns the value in the plain form that messages carry: numbers of numpy, tuples and the
like are converted, anything else of a wrong type is refused with the field, the value and what was
expected.
"""

from collections.abc import Callable, Iterable, Mapping
from math import isnan
from numbers import Integral, Real
from typing import Any

from quire_engine.errors import InvalidRequestError

Check = Callable[[str, Any], Any]
"""Takes a field's name and value; returns the value, or raises InvalidRequestError."""


def optional(check: Check) -> Check:
    """Return a check that lets None pass."""

    def check_unless_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return check_unless_none


def integer(name: str, value: Any) -> Any:
    """Accept an integer, but no bool."""
    if type(value) is int:
        return value
    if type(value) is not bool and isinstance(value, Integral):
        return int(value)
    raise _refusal(name, value, "an integer")


def number(name: str, value: Any) -> Any:
    """Accept an integer or a real number, but no bool."""
    if type(value) is float:
        return value
    if type(value) is not bool and isinstance(value, Real):
        return float(value)
    raise _refusal(name, value, "a number")


def boolean(name: str, value: Any) -> Any:
    """Accept True and False alone."""
    if type(value) is bool:
        return value
    raise _refusal(name, value, "true or false")


def integers(name: str, value: Any) -> Any:
    """Accept any iterable of integers."""
    return _list_of(integer, name, value, "a list of integers")


def strings(name: str, value: Any) -> Any:
    """Accept any iterable of strings."""
    return _list_of(_string, name, value, "a list of strings")


def string_or_strings(name: str, value: Any) -> Any:
    """Accept a string, or any iterable of strings."""
    if isinstance(value, str):
        return value
    return _list_of(_string, name, value, "a string or a list of strings")


def token_biases(name: str, value: Any) -> Any:
    """Check a mapping of token ids to biases; the ids may be strings, as JSON has them."""
    if not isinstance(value, Mapping):
        raise _refusal(name, value, "a mapping of token ids to numbers")
    biases = {_token_id(name, key): number(name, bias) for key, bias in value.items()}
    if any(map(isnan, biases.values())):
        raise _refusal(name, value, "a mapping of token ids to numbers, none of them NaN")
    return biases


def _token_id(name: str, key: Any) -> int:
    if isinstance(key, str):
        try:
            return int(key)
        except ValueError:
            raise _refusal(name, key, "a mapping with token ids as keys") from None
    return int(integer(name, key))


def _string(name: str, value: Any) -> Any:
    if type(value) is str:
        return value
    raise _refusal(name, value, "a string")


def _list_of(check: Check, name: str, value: Any, expected: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _refusal(name, value, expected)
    try:
        return [check(name, item) for item in value]
    except InvalidRequestError:
        raise _refusal(name, value, expected) from None


def _refusal(name: str, value: Any, expected: str) -> InvalidRequestError:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    return InvalidRequestError(
        f"{name} must be {expected}, got {shown} of type {type(value).__name__}", name
    )
