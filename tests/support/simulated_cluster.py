"""A cluster small enough to step through: the store, and the controllers that plans count on.

It knows of StatefulSets what matters for a rollout (revisions, OnDelete, partition, one pod at a
time) and makes pods ready when it is told to. Nothing happens by itself.
"""

import copy
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from quire_operator.api import timestamp
from quire_operator.capacity import Fleet
from quire_operator.plan import (
    DEPLOYMENT_LABEL,
    SPEC_HASH_ANNOTATION,
    Deletion,
    Manifest,
    ObjectKey,
    Observed,
    OperatorSettings,
    Plan,
    object_key,
    plan,
)
from quire_operator.plan.hashing import hash_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE = "default"
REVISION = "controller-revision-hash"


def make_deployment(name: str = "demo", **spec: Any) -> Manifest:
    """Return an LLMDeployment as a server without defaults would hold it."""
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": "uid-of-demo", "generation": 1},
        "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}} | spec,
    }


def make_node(name: str, *, product: str = "NVIDIA-H200", gpus: int = 8, **labels: str) -> Manifest:
    """Return a ready node with GPUs, labelled as GPU Feature Discovery does."""
    own = {
        "kubernetes.io/hostname": name,
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(gpus),
    }
    given = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    return {
        "metadata": {"name": name, "labels": own | given},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class SimulatedCluster:
    """One deployment's world."""

    def __init__(
        self, deployment: Manifest, *, settings: OperatorSettings | None = None, **observed: Any
    ) -> None:
        self.deployment = deployment
        self.settings = settings or OperatorSettings(pipeline_parallelism=True)
        given = {"nodes": (make_node("node-1"),), **observed}
        self.surroundings = given | {"nodes": Fleet(given["nodes"])}
        self.objects: dict[ObjectKey, Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.now = START
        self.num_pods_made = 0
        self._templates: dict[str, Manifest] = {}
        self._uids = itertools.count(1)

    def observe(self) -> Observed:
        return Observed(
            children=copy.deepcopy(self.objects),
            pods=copy.deepcopy(list(self.pods.values())),
            now=self.now,
            **self.surroundings,
        )

    def plan(self) -> Plan:
        return plan(copy.deepcopy(self.deployment), self.observe(), self.settings)

    def reconcile(self, *, max_writes: int | None = None) -> Plan:
        """Plan and carry out; stop after so many writes, as an operator that is killed does."""
        made = self.plan()
        writes: list[Callable[[], None]] = [
            *(partial(self._apply, item) for item in made.objects if self._is_new(item)),
            *(partial(self._delete, deletion) for deletion in made.deletions),
            partial(self._write_status, made.status),
        ]
        for write in writes[:max_writes]:
            write()
        return made

    def run_controllers(self) -> None:
        """Let Kubernetes' controllers look once at everything."""
        for key, manifest in self.objects.items():
            if key.kind == "StatefulSet":
                self._run_stateful_set(manifest)
            if key.kind == "Deployment":
                manifest["status"] = {"readyReplicas": manifest["spec"]["replicas"]}

    def make_ready(self, *names: str) -> None:
        """Let pods become ready; all without names."""
        for name in names or tuple(self.pods):
            conditions = [
                {"type": "Ready", "status": "True", "lastTransitionTime": timestamp(self.now)}
            ]
            if not self.is_ready(name):
                self.pods[name]["status"] = {"phase": "Running", "conditions": conditions}

    def is_ready(self, name: str) -> bool:
        conditions = self.pods[name].get("status", {}).get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def num_ready(self) -> int:
        return sum(map(self.is_ready, self.pods))

    def change_spec(self, **spec: Any) -> None:
        """Write the spec, as a user does."""
        self.deployment["spec"] |= spec
        self.deployment["metadata"]["generation"] += 1

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def settle(self, *, max_rounds: int = 50) -> Plan:
        """Go on until a plan has nothing to do and return it."""
        for _ in range(max_rounds):
            made = self.reconcile()
            self.run_controllers()
            self.make_ready()
            self.pass_time(1)
            if self.is_steady():
                return made
        raise AssertionError(f"still busy after {max_rounds} rounds: {self.plan()}")

    def is_steady(self) -> bool:
        """Tell whether the next plan would change nothing at all."""
        made = self.plan()
        return not (
            any(map(self._is_new, made.objects))
            or made.deletions
            or made.events
            or made.news
            or made.status != self.deployment.get("status")
        )

    def child(self, kind: str, name: str) -> Manifest:
        return next(m for key, m in self.objects.items() if (key.kind, key.name) == (kind, name))

    def revisions(self) -> dict[str, str]:
        """Return each engine pod's revision."""
        return {name: pod["metadata"]["labels"][REVISION] for name, pod in self.pods.items()}

    def complete_job(self) -> None:
        """Let the weights' job succeed."""
        for key, manifest in self.objects.items():
            if key.kind == "Job":
                manifest["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}

    def _is_new(self, manifest: Manifest) -> bool:
        live = self.objects.get(object_key(manifest))
        return live is None or _hash(live) != _hash(manifest)

    def _apply(self, manifest: Manifest) -> None:
        key, manifest = object_key(manifest), copy.deepcopy(manifest)
        live = self.objects.get(key)
        metadata = manifest["metadata"]
        if live is None:
            metadata |= {"uid": self._uid(), "generation": 1}
        else:
            changed = live.get("spec") != manifest.get("spec")
            generation = live["metadata"]["generation"] + changed
            metadata |= {"uid": live["metadata"]["uid"], "generation": generation}
            manifest["status"] = live.get("status", {})
        self.objects[key] = manifest

    def _delete(self, deletion: Deletion) -> None:
        key = deletion.key
        if key.kind == "Pod":
            pod = self.pods.get(key.name)
            if pod and pod["metadata"]["uid"] == deletion.uid:
                del self.pods[key.name]
            return
        live = self.objects.pop(key)
        assert live["metadata"]["uid"] == deletion.uid
        if key.kind == "StatefulSet":
            for name in [n for n, pod in self.pods.items() if _owner(pod) == key.name]:
                del self.pods[name]

    def _write_status(self, status: Manifest) -> None:
        self.deployment["status"] = copy.deepcopy(status)

    def _uid(self) -> str:
        return f"uid-{next(self._uids)}"

    def _run_stateful_set(self, live: Manifest) -> None:
        name, spec, status = live["metadata"]["name"], live["spec"], live.setdefault("status", {})
        revision = f"{name}-{hash_of(spec['template'])[:8]}"
        status |= {
            "observedGeneration": live["metadata"]["generation"],
            "updateRevision": revision,
            "currentRevision": status.get("currentRevision", revision),
        }
        self._templates[revision] = copy.deepcopy(spec["template"])
        strategy = spec["updateStrategy"]
        partition = strategy.get("rollingUpdate", {}).get("partition", 0)
        is_rolling = strategy["type"] == "RollingUpdate"
        missing = [i for i in range(spec["replicas"]) if f"{name}-{i}" not in self.pods]
        for index in missing:
            held = is_rolling and index < partition
            self._make_pod(live, index, status["currentRevision"] if held else revision)
        for pod_name in [n for n, pod in self.pods.items() if _owner(pod) == name]:
            if int(pod_name.rpartition("-")[2]) >= spec["replicas"]:
                del self.pods[pod_name]
        if is_rolling and not missing:
            self._roll(live, revision, partition)

    def _roll(self, live: Manifest, revision: str, partition: int) -> None:
        """Replace one pod, as a StatefulSet's own rolling update does."""
        name, num_replicas = live["metadata"]["name"], live["spec"]["replicas"]
        for index in reversed(range(partition, num_replicas)):
            pod_name = f"{name}-{index}"
            if self.revisions()[pod_name] != revision:
                del self.pods[pod_name]
                return
            if not self.is_ready(pod_name):
                return
        names = [f"{name}-{index}" for index in range(num_replicas)]
        if all(self.revisions()[n] == revision and self.is_ready(n) for n in names):
            live["status"]["currentRevision"] = revision

    def _make_pod(self, live: Manifest, index: int, revision: str) -> None:
        name = f"{live['metadata']['name']}-{index}"
        template = copy.deepcopy(self._templates[revision])
        labels = template["metadata"]["labels"] | {REVISION: revision}
        self.num_pods_made += 1
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": self._uid(),
                "labels": labels,
                "annotations": template["metadata"].get("annotations", {}),
                "creationTimestamp": timestamp(self.now),
                "ownerReferences": [
                    {"kind": "StatefulSet", "name": live["metadata"]["name"], "controller": True}
                ],
            },
            "spec": template["spec"] | {"nodeName": "node-1"},
            "status": {"phase": "Pending"},
        }
        assert labels[DEPLOYMENT_LABEL] == self.deployment["metadata"]["name"]


def _owner(pod: Manifest) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["name"])


def _hash(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][SPEC_HASH_ANNOTATION])
