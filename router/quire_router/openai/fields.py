"""Checks of request fields. Each returns the value as the router uses it, or says what is wrong.

Bodies are decoded by orjson and checked field by field: that costs less than a model class, and
every message can name the field, the value and the limit.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from quire_router.errors import BadRequestError, UnsupportedError

Check = Callable[[str, Any], Any]
"""(name of the field, its value, never None) -> the value to use."""

MAX_SHOWN_CHARS = 64
MAX_TOKEN_ID = 2**32 - 1


class FieldError(BadRequestError):
    """A field is missing, of the wrong type or out of range; `param` names it."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message, param=param)
        self.code = code


def shown(value: Any) -> str:
    """Return a value as an error message shows it: short, whatever the client sent."""
    if isinstance(value, dict | list) and value:
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARS:
        value = value[:MAX_SHOWN_CHARS] + "..."
    return json.dumps(value, ensure_ascii=False)


def wrong_type(name: str, value: Any, expected: str) -> FieldError:
    """Say that a value has another type than expected."""
    return FieldError(f"{name} must be {expected}, not {shown(value)}", name, "invalid_type")


def out_of_range(name: str, value: Any, limit: str) -> FieldError:
    """Say that a value of the right type is not allowed, and what is."""
    return FieldError(f"{name} must be {limit}, not {shown(value)}", name, "invalid_value")


def missing(name: str) -> FieldError:
    """Say that a required field is absent."""
    return FieldError(f"{name} is required", name, "missing_required_parameter")


def parse(body: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the checked fields of a body. Null is absent; what has no check is ignored."""
    parsed = {}
    for name, value in body.items():
        if value is not None and (check := checks.get(name)):
            parsed[name] = check(name, value)
    return parsed


def boolean(name: str, value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "true or false")
    return value


def string(name: str, value: Any) -> str:
    """Check for a string."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "a string")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Check for an object."""
    if not isinstance(value, dict):
        raise wrong_type(name, value, "an object")
    return value


def array(name: str, value: Any) -> list[Any]:
    """Check for an array."""
    if not isinstance(value, list):
        raise wrong_type(name, value, "an array")
    return value


def integer(low: int | None = None, high: int | None = None) -> Check:
    """Check for whole numbers in [low, high]; 3.0 is one, true is none."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(name, value, "an integer")
        if (low is not None and value < low) or (high is not None and value > high):
            raise out_of_range(name, value, _limits(low, high))
        return value

    return check


def number(low: float, high: float = math.inf, *, excludes_low: bool = False) -> Check:
    """Check for numbers in [low, high], or in (low, high]."""

    def check(name: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong_type(name, value, "a number")
        if (
            not math.isfinite(value)
            or value > high
            or value < low
            or (excludes_low and value == low)
        ):
            limit = f"in ({low}, {high}]" if excludes_low else f"in [{low}, {high}]"
            if high == math.inf:
                limit = f"greater than {low}" if excludes_low else f"at least {low}"
            raise out_of_range(name, value, limit)
        return float(value)

    return check


def one_of(*choices: str) -> Check:
    """Check for one of a few strings."""

    def check(name: str, value: Any) -> str:
        if string(name, value) not in choices:
            raise out_of_range(name, value, "one of " + ", ".join(choices))
        return str(value)

    return check


def list_of(check_item: Check, *, max_num_items: int = 2**20) -> Check:
    """Check for arrays; an item at fault is named as `field[3]`."""

    def check(name: str, value: Any) -> list[Any]:
        if len(array(name, value)) > max_num_items:
            raise out_of_range(name, len(value), f"an array of at most {max_num_items} items")
        return [check_item(f"{name}[{index}]", item) for index, item in enumerate(value)]

    return check


def string_or_list(*, max_num_items: int) -> Check:
    """Check for a string or an array of strings; gives a list without empty strings refused."""
    many = list_of(string, max_num_items=max_num_items)

    def check(name: str, value: Any) -> list[str]:
        if not isinstance(value, str | list):
            raise wrong_type(name, value, "a string or an array of strings")
        items: list[str] = [value] if isinstance(value, str) else many(name, value)
        if "" in items:
            raise out_of_range(name, value, "without empty strings")
        return items

    return check


token_id = integer(0, MAX_TOKEN_ID)


def token_ids(name: str, value: Any) -> list[int]:
    """Check an array of token ids; one pass in C when all is well, since prompts are long."""
    items = array(name, value)
    if set(map(type, items)) <= {int} and (
        not items or (min(items) >= 0 and max(items) <= MAX_TOKEN_ID)
    ):
        return items
    return [token_id(f"{name}[{index}]", item) for index, item in enumerate(items)]


def token_biases(name: str, value: Any) -> dict[int, float]:
    """Check `logit_bias`: token ids, as JSON keys, to biases."""
    bias = number(-100.0, 100.0)
    checked = {}
    for key, item in mapping(name, value).items():
        if not key.isdecimal() or int(key) > MAX_TOKEN_ID:
            raise wrong_type(name, key, "an object whose keys are token ids")
        checked[int(key)] = bias(f"{name}.{key}", item)
    return checked


def refused(reason: str, *, unless: tuple[Any, ...] = ()) -> Check:
    """Refuse a field that would change the answer and is not done; `unless` are harmless values."""

    def check(name: str, value: Any) -> None:
        if not any(value is harmless or value == harmless for harmless in unless):
            raise UnsupportedError(f"{name} is not supported: {reason}", param=name)

    return check


def _limits(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low}"
    if low is None:
        return f"at most {high}"
    return f"in [{low}, {high}]"
