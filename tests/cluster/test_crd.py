"""The CRD on a real API server: samples, rules, defaults, columns, scale."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.cluster import Cluster
from local_cluster.errors import CommandError
from quire_operator.api import DeploymentSpec, parse_spec

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "llmdeployments.quire.dev.yaml"
CRD_NAME = "llmdeployments.quire.dev"
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))

Json = dict[str, Any]
HF: Json = {"source": "hf://Qwen/Qwen3-8B"}
SCALING: Json = {"maxReplicas": 4, "metrics": [{"type": "queueDepth", "target": 4}]}


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that has the CRD; it goes again where it was not there before."""
    was_there = CRD_NAME in cluster.kubectl("get", "crds", "--output=name")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    cluster.wait(f"crd/{CRD_NAME}", "condition=Established")
    yield cluster
    if not was_there:
        cluster.kubectl("delete", "crd", CRD_NAME)


def deployment(name: str = "demo", **spec: Any) -> Json:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {"model": HF} | spec,
    }


def create(server: Cluster, namespace: str, item: Json, *options: str) -> Json:
    """Create, or with `--dry-run=server` only ask, and return what the server makes of it."""
    arguments = ("create", f"--namespace={namespace}", "--output=json", *options, "-f", "-")
    created: Json = json.loads(server.kubectl(*arguments, stdin=json.dumps(item)))
    return created


def patch(server: Cluster, namespace: str, spec: Json) -> str:
    arguments = ("patch", "llmd", "demo", f"--namespace={namespace}", "--type=merge")
    return server.kubectl(*arguments, "--dry-run=server", "--patch", json.dumps({"spec": spec}))


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.stem for sample in SAMPLES])
def test_sample_is_accepted(server: Cluster, namespace: str, sample: Path) -> None:
    server.kubectl("apply", f"--namespace={namespace}", "--validate=strict", "-f", str(sample))

    [found] = server.items("llmd", namespace=namespace)
    assert isinstance(parse_spec(found), DeploymentSpec)


def test_the_first_sample_is_short() -> None:
    assert len(SAMPLES[0].read_text().splitlines()) < 20


REJECTED: list[tuple[Json, str]] = [
    (deployment("a" * 46), "metadata.name has more than 45 characters"),
    (deployment("1st"), "metadata.name must be lower-case letters"),
    (deployment("a.b"), "metadata.name must be lower-case letters"),
    (deployment(model={}), "spec.model.source: Required value"),
    (deployment(model={"source": "Qwen/Qwen3-8B"}), "should match '^(hf|pvc|oci|s3|gs|file|demo)"),
    (deployment(model={"source": "hf://Qwen3-8B"}), "must be hf://OWNER/REPOSITORY"),
    (deployment(model={"source": "pvc://UPPER/x"}), "must be pvc://CLAIM or pvc://CLAIM/PATH"),
    (deployment(model={"source": "file://models"}), "must be file:///PATH"),
    (deployment(model={"source": "demo://gpt"}), "the engine image carries one demo model"),
    (
        deployment(model={"source": "oci://example.com/m:1"}, cache={"type": "Ephemeral"}),
        "cache.type Image and an oci:// source belong together",
    ),
    (deployment(cache={"type": "Image"}), "cache.type Image and an oci:// source belong together"),
    (
        deployment(model={"source": "pvc://models"}, cache={"type": "Ephemeral"}),
        "sources are in place already: leave spec.cache.type out",
    ),
    (
        deployment(engine={"device": "cpu"}, parallelism={"tensor": 2}),
        "spec.engine.device cpu runs on one node without GPUs",
    ),
    (
        deployment(engine={"device": "cpu"}, resources={"dra": {"deviceClassName": "gpu"}}),
        "spec.engine.device cpu takes no GPUs",
    ),
    (deployment(engine={"args": ["--port=1"]}), "spec.engine.args repeats a flag"),
    (deployment(engine={"args": ["-tp", "2"]}), "spec.engine.args repeats a flag"),
    (deployment(router={"args": ["--replicas", "a:1"]}), "spec.router.args repeats a flag"),
    (deployment(parallelism={"tensor": 3}), "must be a power of two (1, 2, 4, 8, 16, 32 or 64)"),
    (
        deployment(parallelism={"tensor": 2, "nodesPerReplica": 4}),
        "tensor * pipeline must be a multiple of nodesPerReplica",
    ),
    (
        deployment(autoscaling=SCALING | {"minReplicas": 5}),
        "autoscaling.minReplicas must not be larger than maxReplicas",
    ),
    (
        deployment(autoscaling=SCALING | {"minReplicas": 0}),
        "minReplicas 0 needs provider keda, and spec.router.enabled",
    ),
    (
        deployment(autoscaling=SCALING | {"scaleToZero": {}}),
        "spec.autoscaling.scaleToZero needs minReplicas 0",
    ),
    (
        deployment(autoscaling=SCALING | {"prometheusAddress": "http://prometheus:9090"}),
        "prometheusAddress is for provider keda",
    ),
    (deployment(autoscaling=SCALING | {"metrics": []}), "should have at least 1 items"),
    (
        deployment(autoscaling=SCALING | {"metrics": [{"type": "external", "target": 1}]}),
        "metrics[].name is the metric or query of type external",
    ),
    (
        deployment(autoscaling=SCALING | {"metrics": [{"type": "kvCachePercent", "target": 101}]}),
        "target of kvCachePercent must be 100 or less",
    ),
    (
        deployment(resources={"gpuResourceName": "amd.com/gpu", "dra": {"deviceClassName": "g"}}),
        "dra and gpuResourceName are two ways to ask for the same GPUs",
    ),
    (deployment(cache={"type": "PVC"}), "type PVC needs size for a new claim, or existingClaim"),
    (
        deployment(cache={"type": "PVC", "size": "1Gi", "existingClaim": "models"}),
        "type PVC needs size for a new claim, or existingClaim",
    ),
    (deployment(cache={"existingClaim": "models"}), "accessModes are for cache.type PVC"),
    (deployment(cache={"type": "HostPath"}), "spec.cache.hostPath, a folder on the nodes"),
    (deployment(cache={"prefetch": "Job"}), "it needs cache.type PVC; use InitContainer"),
    (deployment(rollout={"maxUnavailable": 0}), "rollout.maxUnavailable must be at least 1"),
    (deployment(rollout={"maxUnavailable": "0%"}), "rollout.maxUnavailable must be at least 1"),
    (
        deployment(disruption={"maxUnavailable": "1x"}),
        "disruption.maxUnavailable must be 0 or more",
    ),
    (
        deployment(placement={"nvlink": {"computeDomain": {"create": True}}}),
        "needs spec.parallelism.nodesPerReplica of 2 or more",
    ),
    (deployment(drain={"timeoutSeconds": 3601}), "should be less than or equal to 3600"),
    (deployment(engine={"blockSize": 8}), "Unsupported value: 8"),
    (deployment(replica=2), 'unknown field "spec.replica"'),
]

CHANGES: list[tuple[Json, Json, str]] = [
    (
        {"parallelism": {"tensor": 2}},
        {"parallelism": {"nodesPerReplica": 2}},
        "nodesPerReplica cannot be changed",
    ),
    (
        {"resources": {"dra": {"deviceClassName": "gpu"}}},
        {"resources": {"dra": {"deviceClassName": "other"}}},
        "spec.resources.dra cannot be changed",
    ),
    (
        {},
        {"resources": {"dra": {"deviceClassName": "gpu"}}},
        "spec.resources.dra cannot be added or removed",
    ),
    (
        {"cache": {"type": "PVC", "size": "10Gi"}},
        {"cache": {"size": "9Gi"}},
        "spec.cache.size cannot shrink",
    ),
    (
        {"cache": {"type": "PVC", "size": "10Gi"}},
        {"cache": {"storageClassName": "fast"}},
        "storageClassName and accessModes cannot be changed",
    ),
]


@pytest.mark.parametrize(("item", "message"), REJECTED, ids=lambda value: str(value)[:60])
def test_mistake_is_rejected_with_its_message(server: Cluster, item: Json, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        create(server, "default", item, "--dry-run=server", "--validate=strict")

    assert message in str(caught.value)


@pytest.mark.parametrize(("before", "change", "message"), CHANGES, ids=lambda value: str(value))
def test_change_is_rejected_with_its_message(
    server: Cluster, namespace: str, before: Json, change: Json, message: str
) -> None:
    create(server, namespace, deployment(**before))

    with pytest.raises(CommandError) as caught:
        patch(server, namespace, change)

    assert message in str(caught.value)


def test_a_claim_may_grow(server: Cluster, namespace: str) -> None:
    create(server, namespace, deployment(cache={"type": "PVC", "size": "900Mi"}))

    assert "patched" in patch(server, namespace, {"cache": {"size": "1Gi"}})


def test_every_rule_has_a_rejected_example() -> None:
    shown = [message for _, message in REJECTED] + [message for _, _, message in CHANGES]

    rules = list(_rules(yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]))
    assert len(rules) > 25
    for rule in rules:
        assert any(message in rule["message"] for message in shown), rule["message"]


def test_the_servers_defaults_are_the_operators(server: Cluster) -> None:
    item = deployment(autoscaling=SCALING, model=HF | {"tokenSecretRef": {"name": "token"}})

    created = create(server, "default", item, "--dry-run=server")

    assert parse_spec(created) == parse_spec(item)


def test_scale_reads_and_writes_replicas_and_has_the_selector(
    server: Cluster, namespace: str
) -> None:
    create(server, namespace, deployment())
    status = {"status": {"replicas": 1, "selector": "quire.dev/deployment=demo"}}
    target = ("llmd", "demo", f"--namespace={namespace}")
    server.kubectl(
        "patch", *target, "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )

    server.kubectl("scale", *target, "--replicas=3")

    scale = json.loads(server.kubectl("get", *target, "--subresource=scale", "--output=json"))
    assert scale["spec"]["replicas"] == 3
    assert scale["status"] == {"replicas": 1, "selector": "quire.dev/deployment=demo"}


def test_columns_and_short_names_read_well(server: Cluster, namespace: str) -> None:
    create(server, namespace, deployment())

    option = f"--namespace={namespace}"
    narrow, wide = (server.kubectl("get", kind, option, *more).splitlines()[0].split()
                    for kind, more in (("llm", ()), ("quire", ("--output=wide",))))  # fmt: skip
    assert narrow == ["NAME", "MODEL", "READY", "DESIRED", "STATUS", "TP", "AGE"]
    assert wide[-4:] == ["GPUS", "UPDATED", "URL", "REASON"]


def test_fields_are_explained(server: Cluster) -> None:
    text = server.kubectl("explain", "llmd.spec.rollout.partition")

    assert "Replicas with a lower index keep the old revision" in " ".join(text.split())


def _rules(schema: Any) -> Iterator[Json]:
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
        for value in schema.values():
            yield from _rules(value)
