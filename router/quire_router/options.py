"""How a configuration field becomes a flag of `quire router`."""

from dataclasses import field
from typing import Any


def option(default: Any, help_: str, *, choices: tuple[Any, ...] = (), short: str = "") -> Any:
    """Declare a field with the help text and choices of its flag.

    A field of type `tuple[str, ...]` takes a flag several times, or several values.
    """
    metadata = {"help": help_, "choices": choices, "short": short}
    return field(default=default, metadata=metadata)
