"""The API reference, crds/README.md, out of the CRD: every field, every rule, every condition."""

from collections.abc import Iterator, Mapping
from typing import Any

from quire_operator.api import CONDITION_REASONS

Schema = Mapping[str, Any]

_HEAD = """\
# LLMDeployment, quire.dev/v1alpha1

Generated from `{source}` by `make generate`. The same text is in `kubectl explain llmd.spec`;
examples, one feature each, are in [manifests/samples](../manifests/samples). Short names: {names}.
"""


def api_page(crd: Mapping[str, Any], source: str) -> str:
    """Return the page in Markdown."""
    spec = crd["spec"]
    [version] = spec["versions"]
    root = version["schema"]["openAPIV3Schema"]
    names = ", ".join(f"`{name}`" for name in spec["names"]["shortNames"])
    parts = [
        _HEAD.format(source=source, names=names),
        _columns(version["additionalPrinterColumns"]),
        "## Spec\n",
        _table(root["properties"]["spec"], "spec"),
        "## Rules\n\nThe API server refuses what breaks one, with these words.\n",
        "\n".join(f"* {message}" for message in _messages(root)) + "\n",
        "## Status\n",
        _table(root["properties"]["status"], "status"),
        "## Conditions\n\nEach has the next step in its message. `ReconciliationPaused` and "
        "`Degraded` are bad\nnews when they are True, the others when they are False. The operator "
        "adds `Applied`,\nFalse, where the server refused one of its objects.\n",
        _conditions(),
    ]
    return "\n".join(parts)


def _columns(columns: list[Schema]) -> str:
    always = [f"`{column['name'].upper()}`" for column in columns if not column.get("priority")]
    wide = [f"`{column['name'].upper()}`" for column in columns if column.get("priority")]
    return (
        f"`kubectl get llmd` shows {', '.join(always)};\nwith `-o wide` also {', '.join(wide)}.\n"
    )


def _table(schema: Schema, path: str) -> str:
    rows = ["| Field | Type | Default | Meaning |", "|---|---|---|---|", *_rows(schema, path)]
    return "\n".join(rows) + "\n"


def _rows(schema: Schema, path: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        mark = " (required)" if name in required else ""
        cells = (f"`{here}`{mark}", _type(field), _default(field), _meaning(field))
        yield f"| {' | '.join(cells)} |"
        yield from _rows(field, here)
        if field.get("type") == "array":
            yield from _rows(field["items"], f"{here}[]")


def _type(field: Schema) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "number or text"
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    kind = str(field.get("type", "object"))
    if "minimum" in field and "maximum" in field:
        return f"{kind}, {field['minimum']} to {field['maximum']}"
    return kind


def _default(field: Schema) -> str:
    default = field.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _meaning(field: Schema) -> str:
    text = " ".join(field["description"].split()).replace("|", "\\|")
    return f"{text} Example: `{field['example']}`." if "example" in field else text


def _messages(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for value in schema.values():
            yield from _messages(value)


def _conditions() -> str:
    rows = (
        f"| `{type_}` | {', '.join(f'`{reason}`' for reason in reasons)} |"
        for type_, reasons in CONDITION_REASONS.items()
    )
    return "\n".join(["| Type | Reasons |", "|---|---|", *rows]) + "\n"
