"""The API group quire.dev: an LLMDeployment's spec and conditions as Python values."""

from quire_operator.api.conditions import (
    CONDITION_REASONS,
    Condition,
    merge_conditions,
    parse_timestamp,
    timestamp,
)
from quire_operator.api.parse import Problem, parse_spec
from quire_operator.api.source import Source
from quire_operator.api.spec import DeploymentSpec

GROUP = "quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"

__all__ = [
    "API_VERSION",
    "CONDITION_REASONS",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Condition",
    "DeploymentSpec",
    "Problem",
    "Source",
    "merge_conditions",
    "parse_spec",
    "parse_timestamp",
    "timestamp",
]
