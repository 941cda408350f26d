"""Everything that plans apply, put before a real API server, which checks and admits it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.cluster import Cluster, LocalCluster
from quire_operator.plan import Manifest, Observed, OperatorSettings, Plan, object_key, plan

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "llmdeployments.quire.dev.yaml"
CRD_NAME = "llmdeployments.quire.dev"
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
SETTINGS = OperatorSettings(pipeline_parallelism=True)
CLAIMS = ("resource.k8s.io/v1", "ResourceClaimTemplate")
COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}

Json = dict[str, Any]
HF: Json = {"source": "hf://Qwen/Qwen3-8B"}
VARIANTS: dict[str, Json] = {
    "host path": {"model": HF, "cache": {"type": "HostPath", "hostPath": "/models"}},
    "claim by init container": {
        "model": HF,
        "cache": {"type": "PVC", "existingClaim": "models", "prefetch": "InitContainer"},
    },
    "claim that goes": {"model": HF, "cache": {"type": "PVC", "size": "1Gi", "retain": "Delete"}},
    "suspended": {"model": HF, "suspend": True, "replicas": 3},
    "no router": {"model": HF, "router": {"enabled": False}},
    "no hook": {"model": HF, "drain": {"preStopSeconds": 0}},
    "percentages": {
        "model": HF,
        "replicas": 8,
        "rollout": {"maxUnavailable": "25%"},
        "disruption": {"maxUnavailable": "10%"},
    },
    "preferred nvlink": {
        "model": HF,
        "parallelism": {"tensor": 4},
        "placement": {"nvlink": {"mode": "Preferred"}, "minGpuMemory": "40Gi"},
    },
    "groups": {
        "model": HF,
        "replicas": 2,
        "parallelism": {"tensor": 16, "pipeline": 2, "nodesPerReplica": 4},
    },
    "everything about nodes": {
        "model": HF,
        "placement": {
            "nodeSelector": {"pool": "llm"},
            "tolerations": [{"key": "llm", "operator": "Exists", "effect": "NoExecute"}],
            "topologySpread": "None",
        },
    },
    "node port": {"model": HF, "router": {"service": {"type": "NodePort", "port": 8080}}},
    "external metric": {
        "model": HF,
        "autoscaling": {
            "maxReplicas": 2,
            "metrics": [{"type": "external", "target": 1, "name": "queue_length"}],
        },
    },
}


@pytest.fixture(scope="module")
def cluster(control_plane: LocalCluster) -> Cluster:
    """A control plane without an operator, which would write what the tests write."""
    return control_plane


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that has the CRD; it goes again where it was not there before."""
    was_there = CRD_NAME in cluster.kubectl("get", "crds", "--output=name")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    cluster.wait(f"crd/{CRD_NAME}", "condition=Established")
    yield cluster
    if not was_there:
        cluster.kubectl("delete", "crd", CRD_NAME)


def created(server: Cluster, namespace: str, spec: Json, name: str = "demo") -> Json:
    """Create a deployment and return it as the server holds it."""
    item = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    server.kubectl("create", "-f", "-", stdin=json.dumps(item))
    return server.get("llmd", name, namespace=namespace)


def planned(deployment: Json, **observed: Any) -> Plan:
    now = datetime.now(UTC)
    return plan(deployment, replace(Observed(now=now), **observed), SETTINGS)


def all_objects(deployment: Json) -> list[Manifest]:
    """Return what is applied before and after the weights are there."""
    first = planned(deployment, apis=frozenset({CLAIMS}))
    jobs = {object_key(m): m | COMPLETE for m in first.objects if m["kind"] == "Job"}
    second = planned(deployment, apis=frozenset({CLAIMS}), children=jobs)
    return list({object_key(m): m for m in (*first.objects, *second.objects)}.values())


def apply(server: Cluster, objects: list[Manifest], *options: str) -> str:
    """Apply as the operator does and return kubectl's output, warnings included."""
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    command = ("apply", "--server-side", "--field-manager=quire-operator", "--validate=strict")
    return server.kubectl(*command, *options, "-f", "-", stdin=json.dumps(items))


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.stem for sample in SAMPLES])
def test_the_server_takes_every_object_of_a_sample(
    server: Cluster, namespace: str, sample: Path
) -> None:
    document = yaml.safe_load(sample.read_text())
    deployment = created(server, namespace, document["spec"], document["metadata"]["name"])

    objects = all_objects(deployment)

    output = apply(server, objects, "--dry-run=server")
    assert output.count("serverside-applied") == len(objects)
    assert "arning" not in output


@pytest.mark.parametrize("name", VARIANTS)
def test_the_server_takes_every_object_of_a_variant(
    server: Cluster, namespace: str, name: str
) -> None:
    deployment = created(server, namespace, VARIANTS[name])

    objects = all_objects(deployment)

    output = apply(server, objects, "--dry-run=server")
    assert output.count("serverside-applied") == len(objects)
    assert "arning" not in output


def test_the_server_takes_a_plans_status_whole(server: Cluster, namespace: str) -> None:
    deployment = created(server, namespace, {"model": HF})
    made = planned(deployment)

    deployment["status"] = made.status
    server.kubectl(
        "replace", "--subresource=status", "--validate=strict", "-f", "-",
        stdin=json.dumps(deployment),
    )  # fmt: skip

    # Nothing was pruned or changed: a second plan has nothing to write.
    live = server.get("llmd", "demo", namespace=namespace)
    assert live["status"] == made.status
    assert planned(live).status["conditions"] == live["status"]["conditions"]


def test_namespaces_that_enforce_the_restricted_standard_take_the_pods(
    server: Cluster, namespace: str
) -> None:
    label = "pod-security.kubernetes.io/warn=restricted"
    server.kubectl("label", "namespace", namespace, label)
    deployment = created(server, namespace, {"model": HF, "cache": {"type": "PVC", "size": "1Gi"}})

    output = apply(server, all_objects(deployment), "--dry-run=server")

    assert "violate" not in output


def test_a_rollout_changes_the_strategy_and_back_in_place(server: Cluster, namespace: str) -> None:
    """The two strategies share no field, so the server must drop what the other had."""
    deployment = created(server, namespace, {"model": HF})
    first = stateful_set(planned(deployment))
    apply(server, [first])

    deployment["spec"]["engine"]["image"] = "example.com/engine:2"
    children = {object_key(first): live(server, namespace)}
    second = stateful_set(planned(deployment, children=children))
    apply(server, [second])
    assert live(server, namespace)["spec"]["updateStrategy"] == {"type": "OnDelete"}

    settled = live(server, namespace)
    settled["status"] = {
        "observedGeneration": settled["metadata"]["generation"],
        "updateRevision": "demo-2",
    }
    third = stateful_set(planned(deployment, children={object_key(first): settled}))
    apply(server, [third])
    assert live(server, namespace)["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"partition": 0},
    }


def stateful_set(made: Plan) -> Manifest:
    return next(manifest for manifest in made.objects if manifest["kind"] == "StatefulSet")


def live(server: Cluster, namespace: str) -> Json:
    return server.get("statefulset", "demo-engine", namespace=namespace)
