"""Command-line flags and variables, derived from configuration dataclasses.

A field `watch_namespaces` is the flag `--watch-namespaces` and the variable
`QUIRE_OPERATOR_WATCH_NAMESPACES`; a flag wins over a variable, a variable over the default. The
type of a field decides how its text is read, the string under it is its help.
"""

import argparse
import ast
import difflib
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, TypeVar

from quire_operator.errors import ConfigError

ENVIRONMENT_PREFIX = "QUIRE_OPERATOR_"

ConfigT = TypeVar("ConfigT")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


class Parser(argparse.ArgumentParser):
    """A parser that never guesses: no abbreviations, one-line errors, status 2."""

    def __init__(self, prog: str, description: str, environment: Mapping[str, str]) -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage=f"{prog} [options]",
            epilog=f"Every flag is a variable too: --log-level is {ENVIRONMENT_PREFIX}LOG_LEVEL.",
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self._environment = environment

    def add_options(self, config_type: type[Any]) -> None:
        """Add a group with the flags of a dataclass."""
        title = inspect.getdoc(config_type) or config_type.__name__
        group = self.add_argument_group(title.splitlines()[0].rstrip("."))
        helps = field_docs(config_type)
        hints = typing.get_type_hints(config_type)
        for item in fields(config_type):
            _add_flag(group, item, hints[item.name], helps.get(item.name, ""))

    def build(self, config_type: type[ConfigT], given: argparse.Namespace) -> ConfigT:
        """Build a dataclass of flags, variables and defaults; a bad value ends with status 2."""
        hints = typing.get_type_hints(config_type)
        values: dict[str, Any] = {}
        try:
            for item in fields(config_type):  # type: ignore[arg-type]  # a dataclass, by contract
                text, source = self._text_of(item.name, given)
                if text is not None:
                    values[item.name] = read_value(text, hints[item.name], source)
            return config_type(**values)
        except ConfigError as error:
            self.error(str(error))

    def parse_args(  # type: ignore[override]  # argparse's overloads name any namespace type
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; a flag that there is not ends with status 2 and the nearest name."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=", 1)[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            self.error(f"unknown argument: {name}; {hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _text_of(self, name: str, given: argparse.Namespace) -> tuple[str | None, str]:
        value = getattr(given, name, None)
        if value is not None:
            return str(value), f"--{_kebab(name)}"
        variable = ENVIRONMENT_PREFIX + name.upper()
        return self._environment.get(variable), variable


def read_value(text: str, hint: Any, source: str) -> Any:
    """Read the text of a flag or variable as a value of the field's type.

    Raises:
        ConfigError: it cannot be; the message says what could.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        if text not in typing.get_args(hint):
            raise ConfigError(f"{source} must be {_or(typing.get_args(hint))}, not {text!r}")
        return text
    for kind, (reader, expected) in _READERS.items():
        if hint == kind:
            try:
                return reader(text)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{source} must be {expected}, not {text!r}") from error
    raise AssertionError(f"no way to read a {hint} from text")


def field_docs(config_type: type[Any]) -> dict[str, str]:
    """Return the string under each field of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config_type))).body
    assert isinstance(body, ast.ClassDef), "the source of a class is a class"
    docs: dict[str, str] = {}
    name = ""
    for node in body.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=found)):
                name = found
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                docs[name] = re.sub(r"\s+", " ", text).strip()
                name = ""
    return docs


def _add_flag(group: Any, item: Field[Any], hint: Any, help_: str) -> None:
    flag = f"--{_kebab(item.name)}"
    is_said = item.default in (None, "", ()) or item.default is MISSING
    default = "" if is_said else f" Default: {_show(item.default)}."
    common = {"dest": item.name, "default": None, "help": (help_ + default).replace("%", "%%")}
    if hint is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        return
    group.add_argument(flag, metavar=_metavar(hint), **common)


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(typing.get_args(hint)) + "}"
    if hint in (int, float):
        return "N"
    return "TEXT" if hint is str else "LIST"


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _or(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(text)
    return key, value


def _pairs(text: str) -> dict[str, str]:
    return dict(_pair(word) for word in _words(text))


def _objects(text: str) -> tuple[dict[str, str], ...]:
    value = json.loads(text)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(text)
    return tuple(value)


_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_READERS: dict[Any, tuple[Any, str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _SWITCH[text.lower()], "true or false"),
    tuple[str, ...]: (_words, "words separated by commas"),
    tuple[str, str]: (_pair, "KEY=VALUE"),
    Mapping[str, str]: (_pairs, "KEY=VALUE pairs separated by commas"),
    tuple[Mapping[str, str], ...]: (_objects, "a JSON list of objects"),
}
