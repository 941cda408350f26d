"""The documented values of a chart.

In `values.yaml` the comment lines right above a key belong to it:

    # -- A description, over
    # as many lines as it takes.
    # @schema minimum: 0
    replicas: 2

`@schema` lines are one YAML mapping per line, merged into the key's JSON schema.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Schema = dict[str, Any]


class ValuesError(Exception):
    """The values file cannot be documented; the message names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One key of the values file, with what its comments say."""

    path: tuple[str, ...]
    default: Any
    description: str
    schema: Schema
    children: tuple["Value", ...] = ()

    @property
    def name(self) -> str:
        """The path with dots, as `--set` takes it."""
        return ".".join(self.path)

    def leaves(self) -> Iterator["Value"]:
        """Yield, in order, the described values at and below this one."""
        if self.description:
            yield self
            return
        for child in self.children:
            yield from child.leaves()


def read_values(text: str) -> tuple[Value, ...]:
    """Return the top-level values of a values file.

    Raises:
        ValuesError: a value without a description, or a `@schema` line that is no mapping.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode), "a values file is a mapping"
    return _read_mapping(node, text.splitlines(), ())


def _read_mapping(
    node: yaml.MappingNode, lines: list[str], parent: tuple[str, ...]
) -> tuple[Value, ...]:
    return tuple(
        _read_value(key, value, lines, (*parent, str(key.value))) for key, value in node.value
    )


def _read_value(key: yaml.Node, node: yaml.Node, lines: list[str], path: tuple[str, ...]) -> Value:
    description, schema = _read_comments(lines, key.start_mark.line)
    # A described mapping is one value; one without a description is a section of values.
    is_section = isinstance(node, yaml.MappingNode) and bool(node.value) and not description
    if not description and not is_section:
        raise ValuesError(f"line {key.start_mark.line + 1}: {'.'.join(path)} has no `# --` line")
    children = (
        _read_mapping(node, lines, path)
        if isinstance(node, yaml.MappingNode) and is_section
        else ()
    )
    return Value(
        path=path,
        default=yaml.safe_load(yaml.serialize(node)),
        description=description,
        schema=schema,
        children=children,
    )


def _read_comments(lines: list[str], key_line: int) -> tuple[str, Schema]:
    start = key_line
    while start > 0 and re.match(r"\s*#", lines[start - 1]):
        start -= 1
    words: list[str] = []
    schema: Schema = {}
    for number in range(start, key_line):
        comment = lines[number].strip().removeprefix("#").strip()
        if comment.startswith("@schema"):
            schema |= _read_schema(comment.removeprefix("@schema"), number)
        elif comment.startswith("--") or words:
            words.append(comment.removeprefix("--").strip())
    return " ".join(words), schema


def _read_schema(text: str, line: int) -> Schema:
    schema = yaml.safe_load(text)
    if not isinstance(schema, dict):
        raise ValuesError(f"line {line + 1}: @schema takes a mapping such as `minimum: 0`")
    return schema
