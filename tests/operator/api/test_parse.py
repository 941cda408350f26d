from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_operator.api import DeploymentSpec, Problem, Source, parse_spec
from simulated_cluster import make_deployment


def problem(name: str = "demo", **spec: Any) -> Problem:
    found = parse_spec(make_deployment(name, **spec))
    assert isinstance(found, Problem)
    return found


def test_a_spec_of_one_line_has_all_defaults() -> None:
    spec = parse_spec(make_deployment())

    assert isinstance(spec, DeploymentSpec)
    assert (spec.replicas, spec.drain.timeout_seconds, spec.router.replicas) == (1, 120, 2)


def test_unknown_fields_of_a_newer_crd_are_ignored() -> None:
    assert isinstance(parse_spec(make_deployment(novelty=True)), DeploymentSpec)


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"model": {"source": "s3://bucket/model"}}, "UnsupportedSource", "use pvc://CLAIM/PATH"),
        ({"model": {"source": "ftp://x/y"}}, "UnsupportedSource", "is none of hf://"),
        ({"model": {}}, "Invalid", "spec.model.source is required"),
        ({"model": "Qwen3-8B"}, "Invalid", "spec.model must be an object, not 'Qwen3-8B'"),
        ({"replicas": "two"}, "Invalid", "spec.replicas must be a whole number, not 'two'"),
        ({"replicas": True}, "Invalid", "spec.replicas must be a whole number, not True"),
        ({"replicas": -1}, "Invalid", "spec.replicas must be between 0 and 1000, not -1"),
        ({"engine": {"blockSize": 8}}, "Invalid", "must be one of 16, 32, 64, 128, 256; not 8"),
        ({"engine": {"args": "--x"}}, "Invalid", "spec.engine.args must be a list"),
        ({"engine": {"args": ["--port=1"]}}, "ArgsConflict", "--port"),
        ({"router": {"args": ["--host", "::"]}}, "ArgsConflict", "--host"),
        ({"parallelism": {"nodesPerReplica": 2}}, "Invalid", "no multiple of nodesPerReplica 2"),
        ({"parallelism": {"tensor": 0}}, "Invalid", "must be 1 or more everywhere"),
        ({"cache": {"type": "PVC"}}, "Invalid", "needs size or existingClaim"),
        ({"cache": {"type": "HostPath"}}, "Invalid", "needs hostPath"),
        ({"cache": {"type": "Image"}}, "Invalid", "belong together"),
        ({"cache": {"prefetch": "Job"}}, "Invalid", "needs cache.type PVC"),
        (
            {"autoscaling": {"minReplicas": 3, "maxReplicas": 2, "metrics": []}},
            "Invalid",
            "minReplicas 3 is larger than maxReplicas 2",
        ),
        ({"autoscaling": {"maxReplicas": 2, "metrics": []}}, "Invalid", "at least one metric"),
        (
            {"podTemplate": {"metadata": {"labels": "x"}}},
            "Invalid",
            "podTemplate.metadata.labels must be a map of texts",
        ),
        (
            {"podTemplate": {"spec": {"containers": [{"image": "x"}]}}},
            "Invalid",
            "podTemplate.spec.containers: each needs a name",
        ),
        (
            {"podTemplate": {"spec": {"volumes": {}}}},
            "Invalid",
            "podTemplate.spec.volumes must be a list of objects",
        ),
        ({"rollout": {"maxUnavailable": "many"}}, "Invalid", "spec.rollout.maxUnavailable"),
        ({"disruption": {"maxUnavailable": []}}, "Invalid", "must be a number or a text"),
    ],
)
def test_a_bad_spec_is_a_problem_with_a_reason(
    spec: dict[str, Any], reason: str, message: str
) -> None:
    found = problem(**spec)

    assert found.reason == reason
    assert message in found.message


@pytest.mark.parametrize(
    ("name", "reason"), [("a" * 46, "NameTooLong"), ("a.b", "Invalid"), ("1a", "Invalid")]
)
def test_a_bad_name_is_a_problem(name: str, reason: str) -> None:
    assert problem(name).reason == reason


@pytest.mark.parametrize(
    ("text", "claim", "path"),
    [("pvc://models", "models", ""), ("pvc://models/a/b/", "models", "a/b")],
)
def test_a_claim_source_has_a_claim_and_a_path(text: str, claim: str, path: str) -> None:
    source = Source.parse(text)

    assert (source.claim, source.path) == (claim, path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
field_names = st.sampled_from(
    [
        "model",
        "engine",
        "parallelism",
        "replicas",
        "autoscaling",
        "resources",
        "placement",
        "cache",
        "rollout",
        "router",
    ]
)


@given(st.dictionaries(field_names, json_values))
def test_nothing_that_a_spec_says_raises(spec: dict[str, Any]) -> None:
    assert isinstance(parse_spec(make_deployment(**spec)), DeploymentSpec | Problem)
