"""values.schema.json: helm refuses what does not fit it before it renders anything."""

from collections.abc import Sequence
from typing import Any

from chart_tools.values import Schema, Value

DNS_LABEL = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
STRING_MAP: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}


def closed(properties: Schema, required: Sequence[str] = ()) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


DEFINITIONS: Schema = {
    "anyObject": {"type": "object"},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "intOrPercent": {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]{1,3}%$"},
        ]
    },
    "llmDeployment": closed(
        {
            "name": {"type": "string", "pattern": DNS_LABEL, "maxLength": 45},
            "namespace": {"$ref": "#/$defs/namespace"},
            "spec": {"type": "object", "required": ["model"]},
        },
        required=("name", "spec"),
    ),
    "localObjectReferences": {
        "type": "array",
        "items": closed({"name": {"type": "string", "minLength": 1}}, required=("name",)),
    },
    "namespace": {"type": "string", "pattern": DNS_LABEL},
    "pullPolicy": {"type": "string", "enum": ["Always", "IfNotPresent", "Never"]},
    "resources": closed({"limits": QUANTITIES, "requests": QUANTITIES}),
    "stringMap": STRING_MAP,
    # What "latest" is changes under a running deployment, and no rollback brings it back.
    "tag": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{0,128}$", "not": {"const": "latest"}},
    "tolerations": {
        "type": "array",
        "items": closed(
            {
                "key": {"type": "string"},
                "operator": {"type": "string", "enum": ["Equal", "Exists"]},
                "value": {"type": "string"},
                "effect": {
                    "type": "string",
                    "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                },
                "tolerationSeconds": {"type": "integer"},
            }
        ),
    },
}


def build_schema(values: Sequence[Value]) -> Schema:
    """Return the JSON schema of a whole values file: no key that it does not have."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart quire",
        **closed({value.path[-1]: _schema_of(value) for value in values}),
        "$defs": DEFINITIONS,
    }


def _schema_of(value: Value) -> Schema:
    if value.children:
        section = closed({child.path[-1]: _schema_of(child) for child in value.children})
        return section | value.schema
    # In draft 7 nothing beside a $ref counts, so the description would be lost.
    own = {"allOf": [value.schema]} if "$ref" in value.schema else value.schema
    typed = {} if "$ref" in value.schema else {"type": _type_of(value.default)}
    return {"description": value.description, "default": value.default, **typed, **own}


def _type_of(default: Any) -> str:
    match default:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
