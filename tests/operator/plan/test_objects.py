"""Laws that hold for every child of every deployment."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from quire_operator.api import DeploymentSpec, parse_spec
from quire_operator.capacity import Fleet
from quire_operator.plan import (
    DEPLOYMENT_LABEL,
    MANAGED_BY,
    SPEC_HASH_ANNOTATION,
    Manifest,
    Observed,
    OperatorSettings,
    Plan,
    object_key,
    plan,
)
from simulated_cluster import START, make_deployment, make_node

APIS = frozenset(
    {
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("resource.k8s.io/v1", "ResourceClaimTemplate"),
        ("resource.nvidia.com/v1beta1", "ComputeDomain"),
        ("scheduling.volcano.sh/v1beta1", "PodGroup"),
    }
)
EVERYTHING = OperatorSettings(pipeline_parallelism=True, adapters=True)

names = st.from_regex(r"[a-z]([-a-z0-9]{0,43}[a-z0-9])?", fullmatch=True)
sources = st.sampled_from(
    [
        "hf://Qwen/Qwen3-8B",
        "pvc://models/qwen3",
        "oci://example.com/models/qwen3:1",
        "file:///models/qwen3",
        "demo://SmolLM2-135M-Instruct",
    ]
)
caches = st.sampled_from(
    [
        {},
        {"type": "PVC", "size": "100Gi"},
        {"type": "PVC", "size": "100Gi", "retain": "Delete", "prefetch": "InitContainer"},
        {"type": "PVC", "existingClaim": "models", "prefetch": "None"},
        {"type": "HostPath", "hostPath": "/models"},
        {"type": "Ephemeral", "size": "50Gi"},
        {"type": "None"},
    ]
)
parallelisms = st.sampled_from(
    [
        {},
        {"tensor": 2},
        {"tensor": 8},
        {"tensor": 4, "pipeline": 2},
        {"tensor": 8, "nodesPerReplica": 2},
        {"tensor": 8, "pipeline": 4, "nodesPerReplica": 4},
    ]
)
metrics = st.sampled_from(
    [
        [{"type": "queueDepth", "target": 4}],
        [{"type": "kvCachePercent", "target": 80}, {"type": "tokensPerSecond", "target": 900}],
        [{"type": "external", "target": 1, "name": "sum(up)"}],
    ]
)
scalings = st.none() | st.builds(
    lambda provider, least, chosen: {
        "provider": provider,
        "minReplicas": least,
        "maxReplicas": 4,
        "metrics": chosen,
        "prometheusAddress": "http://prometheus:9090",
    },
    st.sampled_from(["hpa", "keda"]),
    st.integers(0, 2),
    metrics,
)
specs = st.fixed_dictionaries(
    {
        "model": st.builds(lambda source: {"source": source}, sources),
        "cache": caches,
        "parallelism": parallelisms,
        "replicas": st.integers(0, 4),
        "suspend": st.booleans(),
        "autoscaling": scalings,
        "engine": st.sampled_from([{}, {"device": "cpu"}, {"image": "example.com/e:2"}]),
        "resources": st.sampled_from([{}, {"dra": {"deviceClassName": "gpu.nvidia.com"}}]),
        "rollout": st.sampled_from([{}, {"partition": 1}, {"maxUnavailable": "50%"}]),
        "router": st.sampled_from(
            [{}, {"enabled": False}, {"replicas": 1}, {"apiKeysSecretRef": {"name": "keys"}}]
        ),
        "networkPolicy": st.sampled_from([{}, {"enabled": False}]),
    }
)


def observe(*, nodes: Iterable[Manifest] = (), **changes: Any) -> Observed:
    given = nodes or (make_node("node-1"), make_node("node-2", product="NVIDIA-A10", gpus=4))
    return replace(Observed(now=START, apis=APIS, nodes=Fleet(given)), **changes)


def plan_for(name: str, spec: dict[str, Any], **observed: Any) -> Plan:
    return plan(make_deployment(name, **spec), observe(**observed), EVERYTHING)


def pod_specs(made: Plan) -> Iterator[tuple[Manifest, Manifest]]:
    for manifest in made.objects:
        if template := manifest.get("spec", {}).get("template"):
            yield manifest, template


@settings(max_examples=60)
@given(names, specs)
def test_every_child_can_be_found_is_owned_and_has_a_name_that_fits(
    name: str, spec: dict[str, Any]
) -> None:
    made = plan_for(name, spec)

    for manifest in made.objects:
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "default"
        assert metadata["labels"][DEPLOYMENT_LABEL] == name
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == MANAGED_BY
        assert len(metadata["name"]) <= 63
        if manifest["kind"] == "StatefulSet":
            # Kubernetes puts "-" and a hash of ten characters after it into a label.
            assert len(metadata["name"]) <= 52
        if manifest["kind"] != "PersistentVolumeClaim" or spec["cache"].get("retain") == "Delete":
            [owner] = metadata["ownerReferences"]
            assert (owner["uid"], owner["controller"]) == ("uid-of-demo", True)
    keys = [object_key(manifest) for manifest in made.objects]
    assert len(keys) == len(set(keys))


@settings(max_examples=60)
@given(names, specs)
def test_equal_snapshots_give_equal_plans_and_an_applied_plan_is_not_applied_again(
    name: str, spec: dict[str, Any]
) -> None:
    made = plan_for(name, spec)
    children = {object_key(manifest): manifest for manifest in made.objects}

    again = plan_for(name, spec)
    later = plan_for(name, spec, children=children)

    assert again == made
    assert {key: hash_of(manifest) for key, manifest in children.items()} == {
        object_key(manifest): hash_of(manifest) for manifest in later.objects
    }
    assert not later.deletions


def hash_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][SPEC_HASH_ANNOTATION])


@settings(max_examples=60)
@given(specs)
def test_a_replica_asks_for_as_many_gpus_as_share_the_model(spec: dict[str, Any]) -> None:
    made = plan_for("demo", spec)
    parsed = parse_spec(make_deployment(**spec))
    if not isinstance(parsed, DeploymentSpec):
        return

    parallelism = parsed.parallelism
    wanted = parallelism.tensor * parallelism.pipeline
    if parsed.engine.device == "cpu" or parsed.resources.dra:
        wanted = 0
    for manifest, template in pod_specs(made):
        if manifest["kind"] != "StatefulSet":
            continue
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        per_pod = int(limits.get("nvidia.com/gpu", 0))
        assert per_pod * parallelism.nodes_per_replica == wanted


@settings(max_examples=60)
@given(specs)
def test_every_pod_is_restricted_and_every_image_is_pinned(spec: dict[str, Any]) -> None:
    for manifest, template in pod_specs(plan_for("demo", spec)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        is_router = manifest["kind"] == "Deployment"
        assert pod["automountServiceAccountToken"] is is_router
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert re.search(r":(?!latest$)[^/]+$", container["image"])
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@settings(max_examples=60)
@given(specs)
def test_selectors_select_the_pods_that_are_made(spec: dict[str, Any]) -> None:
    for manifest, template in pod_specs(plan_for("demo", spec)):
        labels = template["metadata"]["labels"]
        selector = manifest["spec"].get("selector", {}).get("matchLabels", {})
        assert selector.items() <= labels.items()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(specs, st.sampled_from(["model", "engine", "cache", "rollout", "podTemplate"]), json_values)
def test_no_spec_makes_a_plan_raise(spec: dict[str, Any], field: str, value: Any) -> None:
    made = plan_for("demo", spec | {field: value})

    assert made.status["conditions"]


@pytest.mark.parametrize(
    "broken",
    [
        {"metadata": {"name": "node"}},
        {},
        {"metadata": {"name": "n", "labels": None}, "spec": None, "status": None},
    ],
)
def test_no_node_makes_a_plan_raise(broken: Manifest) -> None:
    assert plan_for("demo", {}, nodes=(broken,)).status


@pytest.mark.parametrize("broken", [{}, {"metadata": {"labels": None}, "status": None}])
def test_no_pod_makes_a_plan_raise(broken: Manifest) -> None:
    assert plan_for("demo", {}, pods=(broken,)).status
