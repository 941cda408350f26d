"""What the README says of containers and clusters, as far as it needs neither."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from quire_engine.config import EngineConfig
from quire_engine.flags import Parser, add_options
from quire_engine.server.config import ServerConfig
from quire_operator.api.conditions import CONDITION_REASONS
from quire_router.config import RouterConfig
from readme import blocks, section

GOOD = {
    *("Ready", "Valid", "Fits", "Cached", "NotRequired", "MinimumReplicasAvailable"),
    *("RolloutComplete", "NewRevision", "NotPaused", "AsExpected", "Disabled", "Updating"),
    "Terminating",
}
"""Reasons of what nobody has to look into."""
EXPLAINED_BY = {
    "ModelDownloading": "ModelCached",
    "InsufficientCapacity": "CapacityAvailable",
    "PodsNotReady": "WorkloadAvailable",
    "RouterNotReady": "RouterReady",
    "SpecInvalid": "Accepted",
    "ReferenceNotFound": "Accepted",
}
"""Reasons of the summary that repeat another condition's."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    [text] = blocks(section("In containers"), "yaml")
    services: dict[str, Any] = yaml.safe_load(text)
    return services


def test_compose_gives_flags_that_the_images_take(compose: dict[str, Any]) -> None:
    engine, router = compose["services"]["engine"], compose["services"]["router"]

    engine_parser = Parser("quire engine", "")
    engine_parser.add_argument("model")
    for config in (EngineConfig, ServerConfig):
        add_options(engine_parser, config)
    router_parser = Parser("quire router", "")
    add_options(router_parser, RouterConfig)
    assert engine_parser.parse_args(engine["command"]).model == "Qwen/Qwen3-8B"
    assert router_parser.parse_args(router["command"]).replicas == ("engine:50051",)


def test_compose_keeps_what_the_engine_downloads(compose: dict[str, Any]) -> None:
    [volume] = compose["services"]["engine"]["volumes"]

    assert volume == "cache:/cache"
    assert set(compose["volumes"]) == {"cache"}
    assert set(compose["services"]["engine"]["environment"]) == {"HF_TOKEN"}


def test_every_reason_for_trouble_is_explained() -> None:
    explained: dict[str, set[str]] = {}
    current = ""
    for line in section("On Kubernetes").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3:
            current = cells[0] or current
            explained.setdefault(current, set()).update(re.findall(r"\w+", cells[1]))

    missing = [
        (condition, reason)
        for condition, reasons in CONDITION_REASONS.items()
        for reason in reasons
        if reason not in GOOD
        and reason not in explained.get(condition, set())
        and not (condition == "Ready" and EXPLAINED_BY.get(reason) in explained)
        and ((reason != "Suspended" and reason != "ScaledToZero") or condition == "Ready")
    ]
    assert missing == []
    unknown = [
        (condition, reason)
        for condition, reasons in explained.items()
        for reason in reasons
        if condition in CONDITION_REASONS and reason not in CONDITION_REASONS[condition]
    ]
    assert unknown == []


def test_the_commands_for_a_cluster_are_valid_shell() -> None:
    for block in blocks(section("On Kubernetes"), "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
