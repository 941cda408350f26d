"""JSON to frozen dataclasses, by their types.

The API server has checked an object against the CRD before we see it, but against the CRD that was
installed at that time: an operator must survive older and newer ones.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_ABSENT = object()


class MisfitError(ValueError):
    """A value is not of the field's type; the message has its path."""


def decode(cls: type[T], data: Any, path: str) -> T:
    """Return `data` as an instance of the dataclass `cls`. Unknown keys are ignored.

    Raises:
        MisfitError: a required field is missing, or a value is of another type.
    """
    if not isinstance(data, Mapping):
        raise MisfitError(f"{path} must be an object, not {_shown(data)}")
    values = {}
    for name, key, hint, required in _schema(cast(Any, cls)):
        value = data.get(key, _ABSENT)
        if value is _ABSENT or value is None:
            if required:
                raise MisfitError(f"{path}.{key} is required")
            continue
        values[name] = _value(hint, value, f"{path}.{key}")
    return cls(**values)


def json_name(name: str) -> str:
    """Return a field's name as the API spells it: `max_model_len` is maxModelLen."""
    head, *tail = name.rstrip("_").split("_")
    return head + "".join(part.capitalize() for part in tail)


@lru_cache
def _schema(cls: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    hints = get_type_hints(cls)
    return tuple(
        (field.name, json_name(field.name), hints[field.name], _is_required(field))
        for field in fields(cls)
    )


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, path)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise MisfitError(f"{path} must be one of {allowed}; not {_shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise MisfitError(f"{path} must be a list, not {_shown(value)}")
        item = arguments[0]
        return tuple(_value(item, entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if origin is not None:
        return _mapping(arguments[1], value, path)
    if isinstance(hint, type) and is_dataclass(hint):
        return decode(hint, value, path)
    return _scalar(hint, value, path)


def _one_of(hints: tuple[Any, ...], value: Any, path: str) -> Any:
    hints = tuple(hint for hint in hints if hint is not type(None))
    if len(hints) == 1:
        return _value(hints[0], value, path)
    if isinstance(value, bool) or not isinstance(value, hints):
        raise MisfitError(f"{path} must be a number or a text, not {_shown(value)}")
    return value


def _mapping(hint: Any, value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MisfitError(f"{path} must be an object, not {_shown(value)}")
    if hint is Any:
        return dict(value)
    return {str(key): _value(hint, entry, f"{path}.{key}") for key, entry in value.items()}


def _scalar(hint: Any, value: Any, path: str) -> Any:
    # bool is an int in Python, but not in JSON.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {str: "a text", int: "a whole number", bool: "true or false"}
        raise MisfitError(f"{path} must be {names[hint]}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
