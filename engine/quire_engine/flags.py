"""Command-line flags, derived from configuration dataclasses.

    parser = Parser("quire engine", "...", usage="[MODEL] [options]")
    add_model(parser)                         # positional MODEL, the same as --model
    add_options(parser, EngineConfig)         # one group of flags per (nested) dataclass
    namespace = parser.parse_args(arguments)
    config = parser.build(EngineConfig, namespace)

A field `max_model_len` made with `option(...)` is the flag `--max-model-len` (or
`--max_model_len`). Its type decides how the text is read: `bool` gives `--name` and `--no-name`,
`dict` takes JSON, `tuple` takes several values, and integers whose name ends in `_len`, `_tokens`
or `_bytes` take sizes (8k, 1.5GiB, powers of 1024). Flags that vLLM knows and we do not are
skipped with a warning; unknown ones end the process with status 2, naming the nearest.
"""

import argparse
import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, NoReturn, TypeVar

from quire_engine.errors import ConfigError
from quire_engine.peer_flags import PEER_FLAGS

ConfigT = TypeVar("ConfigT")

_SIZE_SUFFIXES = ("_len", "_tokens", "_bytes")
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class Parser(argparse.ArgumentParser):
    """An argument parser that never guesses: no abbreviations, one-line errors, status 2."""

    def __init__(
        self, prog: str, description: str = "", *, usage: str = "[options]", epilog: str = ""
    ) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

    def parse_args(  # type: ignore[override]  # argparse's overloads name any namespace type
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; warn about flags that only vLLM knows; exit with 2 on unknown ones."""
        arguments = list(self._without_peer_flags(sys.argv[1:] if args is None else args))
        parsed, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            self._refuse(unknown)
        self._merge_model(parsed)
        return parsed

    def build(
        self,
        config_type: type[ConfigT],
        namespace: argparse.Namespace,
        *,
        errors: tuple[type[Exception], ...] = (ConfigError,),
    ) -> ConfigT:
        """Build a config from the parsed flags; one of `errors` exits with 2."""
        try:
            return config_from(namespace, config_type)
        except errors as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def warn(self, message: str) -> None:
        """Print one line to stderr and go on."""
        sys.stderr.write(f"{self.prog}: warning: {message}\n")

    def _without_peer_flags(self, args: Sequence[str]) -> Iterator[str]:
        index = 0
        while index < len(args):
            argument = _kebab(args[index])
            index += 1
            if argument == "--":
                yield from args[index - 1 :]
                return
            flag = self._peer_flag(argument)
            if not flag:
                yield argument
                continue
            if "=" not in argument:
                index += _num_values(args[index:], PEER_FLAGS[flag].num_values)
            reason = PEER_FLAGS[flag].reason
            because = f" ({reason})" if reason else ""
            self.warn(f"{flag} is a flag of vLLM that has no effect here{because}")

    def _peer_flag(self, argument: str) -> str:
        name = argument.split("=", 1)[0]
        if not name.startswith("-") or name in self._option_string_actions:
            return ""
        # `--compilation-config.mode 3` sets one key of a JSON flag; `-O3` carries its value.
        name = name.split(".", 1)[0]
        return name if name in PEER_FLAGS else ""

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        flag = next((item for item in unknown if item.startswith("-")), "")
        if not flag:
            self.error(f"unexpected argument: {unknown[0]}")
        name = flag.split("=", 1)[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
        self.error(f"unknown flag: {name}{hint}")

    def _merge_model(self, parsed: argparse.Namespace) -> None:
        given = vars(parsed).pop("model_tag", None)
        if given is None:
            return
        if getattr(parsed, "model", given) != given:
            self.error(f"two different models: {given} and --model {parsed.model}")
        parsed.model = given


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional MODEL, which `parse_args` treats as `--model`."""
    parser.add_argument(
        "model_tag",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="directory, .gguf file or hub name of the model; default: the demo model",
    )


def add_options(
    parser: argparse.ArgumentParser, config_type: type, *, exclude: Iterable[str] = ()
) -> None:
    """Add the flags of a config dataclass; each nested dataclass gets a group of its own."""
    skipped = frozenset(exclude)
    own = [item for item in _options(config_type) if item.name not in skipped]
    if own:
        group = parser.add_argument_group(_title(config_type), _first_line(config_type))
        hints = typing.get_type_hints(config_type)
        for item in own:
            _add_option(group, item, hints[item.name])
    for nested in _nested(config_type).values():
        add_options(parser, nested, exclude=skipped)


def option_names(config_type: type) -> frozenset[str]:
    """Return the names of all options of a config dataclass, nested ones included."""
    own = {item.name for item in _options(config_type)}
    return frozenset(own.union(*map(option_names, _nested(config_type).values())))


def options_from(namespace: argparse.Namespace, config_type: type) -> dict[str, Any]:
    """Return the options of `config_type` that were given, by field name; flat when nested."""
    names = [item.name for item in _options(config_type)]
    given = {name: getattr(namespace, name) for name in names if hasattr(namespace, name)}
    for nested in _nested(config_type).values():
        given |= options_from(namespace, nested)
    return given


def config_from(namespace: argparse.Namespace, config_type: type[ConfigT]) -> ConfigT:
    """Build a config: given flags, defaults for the rest.

    Raises:
        ConfigError: a value is out of range.
    """
    nested = _nested(config_type)
    parts: dict[str, Any] = {key: config_from(namespace, type_) for key, type_ in nested.items()}
    names = frozenset(item.name for item in _options(config_type))
    own = {k: v for k, v in options_from(namespace, config_type).items() if k in names}
    return config_type(**own, **parts)


def arguments_from(namespace: argparse.Namespace, config_type: type) -> list[str]:
    """Write the given options of `config_type` as a command line, for a child process."""
    arguments: list[str] = []
    for name, value in options_from(namespace, config_type).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            arguments += [f"{flag}={item}" for item in value]
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            arguments.append(f"{flag}={text}")
    return arguments


def parse_size(text: str) -> int:
    """Read a whole number with an optional unit: 8192, 8k, 4G, 1.5GiB; units are powers of 1024."""
    match = _SIZE_PATTERN.fullmatch(text.strip())
    if match is None:
        try:
            return int(text)
        except ValueError:
            message = f"not a size: {text!r} (write 8192, 8k, 4G or 1.5GiB)"
            raise argparse.ArgumentTypeError(message) from None
    value = float(match[1]) * _SIZE_UNITS[match[2].lower()]
    if value != int(value):
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}")
    return int(value)


def _parse_optional_size(text: str) -> int | None:
    return None if text.lower() in ("auto", "none", "-1") else parse_size(text)


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text!r}")
    return value


class _Collect(argparse.Action):
    """Gather values into a tuple over repeated flags."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def _add_option(group: Any, item: Field[Any], hint: Any) -> None:
    flags = [f"--{item.name.replace('_', '-')}"]
    if short := item.metadata.get("short"):
        flags.append(f"-{short}")
    group.add_argument(
        *flags,
        dest=item.name,
        default=argparse.SUPPRESS,
        help=_help(item),
        **_reading(item.name, hint, tuple(item.metadata.get("choices") or ())),
    )


def _reading(name: str, hint: Any, choices: tuple[Any, ...]) -> dict[str, Any]:
    type_, is_optional = _unwrap(hint)
    if type_ is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(type_) in (tuple, list, frozenset, set):
        element = typing.get_args(type_)[0]
        return {"action": _Collect, "nargs": "+", "type": element, "metavar": _metavar(name)}
    if typing.get_origin(type_) is dict or type_ is dict:
        return {"type": _parse_json, "metavar": "JSON"}
    if choices:
        return {"type": type_, "choices": choices}
    read: Callable[[str], Any] = type_
    if type_ is int and name.endswith(_SIZE_SUFFIXES):
        read = _parse_optional_size if is_optional else parse_size
    return {"type": read, "metavar": _metavar(name)}


def _unwrap(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0], len(members) < len(typing.get_args(hint))


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()


def _help(item: Field[Any]) -> str:
    text = str(item.metadata["help"])
    default = "on" if item.default is True else item.default
    is_shown = isinstance(default, str | int | float) and default not in ("", False)
    # False equals 0, and a default of 0 is worth showing.
    is_shown = is_shown or type(default) is int
    if is_shown and "default" not in text:
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _options(config_type: type) -> list[Field[Any]]:
    if not is_dataclass(config_type):
        raise TypeError(f"{config_type.__name__} is no dataclass")
    return [item for item in fields(config_type) if item.init and item.metadata.get("help")]


def _nested(config_type: type) -> dict[str, type]:
    hints = typing.get_type_hints(config_type)
    return {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }


def _title(config_type: type) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", config_type.__name__.removesuffix("Config"))
    return " ".join(words).lower() or "options"


def _first_line(config_type: type) -> str:
    return (config_type.__doc__ or "").strip().split("\n", 1)[0]


def _kebab(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _num_values(rest: Sequence[str], num_values: int | None) -> int:
    if num_values is not None:
        # A flag whose value was forgotten must not swallow the next flag.
        return sum(not item.startswith("--") for item in rest[:num_values])
    return next((i for i, item in enumerate(rest) if item.startswith("-")), len(rest))
