"""The typed spec and the CRD say the same."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from quire_operator.api import CONDITION_REASONS
from quire_operator.api.decode import json_name
from quire_operator.api.parse import OWNED_ENGINE_FLAGS, OWNED_ROUTER_FLAGS
from quire_operator.api.spec import DeploymentSpec

CRD = Path(__file__).parents[3] / "crds" / "llmdeployments.quire.dev.yaml"
MAX_BYTES = 60_000


def schema() -> dict[str, Any]:
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    root: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return root


def pairs(cls: Any, node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield path, schema, type and dataclass field of everything below `cls`."""
    hints = get_type_hints(cls)
    for item in fields(cls):
        name = json_name(item.name)
        child = node.get("properties", {}).get(name, {})
        hint = without_none(hints[item.name])
        yield f"{path}.{name}", child, hint, item
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if is_dataclass(inner):
            yield from pairs(inner, child.get("items", child), f"{path}.{name}")


def without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007


ALL = list(pairs(DeploymentSpec, schema()["properties"]["spec"], "spec"))


def test_every_field_of_the_crd_is_read() -> None:
    known = {path for path, *_ in ALL}

    assert set(crd_paths(schema()["properties"]["spec"], "spec")) == known


def crd_paths(node: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from crd_paths(child.get("items", child), f"{path}.{name}")


@pytest.mark.parametrize(("path", "node", "hint", "item"), ALL, ids=[path for path, *_ in ALL])
def test_field_is_the_same_in_both(
    path: str, node: Mapping[str, Any], hint: Any, item: Field[Any]
) -> None:
    assert node, f"{path} is not in the CRD"
    assert node.get("type", "int-or-string") == expected_type(hint)
    if get_origin(hint) is Literal:
        assert tuple(node["enum"]) == get_args(hint)
    if item.default is not MISSING and item.default not in (None, ()):
        assert node.get("default") == item.default
    elif not is_dataclass(hint):
        assert "default" not in node


def expected_type(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return "int-or-string"
    if origin is Literal:
        return "integer" if isinstance(get_args(hint)[0], int) else "string"
    if origin is tuple:
        return "array"
    scalars = {str: "string", int: "integer", bool: "boolean"}
    return scalars.get(hint, "object")


def test_every_field_is_described_and_the_crd_is_small() -> None:
    undescribed = [path for path, node in nodes(schema(), "") if not node.get("description")]

    # Kubernetes forbids a description there.
    assert undescribed == [".metadata"]
    assert CRD.stat().st_size < MAX_BYTES


def nodes(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from nodes(child.get("items", child), f"{path}.{name}")


@pytest.mark.parametrize(
    ("part", "owned"), [("engine", OWNED_ENGINE_FLAGS), ("router", OWNED_ROUTER_FLAGS)]
)
def test_flags_that_are_refused_are_the_same_in_both(part: str, owned: frozenset[str]) -> None:
    args = schema()["properties"]["spec"]["properties"][part]["properties"]["args"]
    [rule] = args["x-kubernetes-validations"]

    listed = rule["rule"].partition(" in [")[2].partition("]")[0]
    assert set(re.findall(r"'([^']+)'", listed)) == owned


def test_every_list_says_how_it_merges() -> None:
    lists = [path for path, node in nodes(schema(), "") if node.get("type") == "array"]
    typed = [p for p, node in nodes(schema(), "") if "x-kubernetes-list-type" in node]

    assert lists == typed


def test_phases_and_conditions_of_the_status_are_described() -> None:
    status = schema()["properties"]["status"]["properties"]
    text = status["conditions"]["description"]

    assert not [type_ for type_ in CONDITION_REASONS if not re.search(rf"\b{type_}\b", text)]
