"""A small planner with every kind of decision that a real one has, for tests of the runtime."""

import hashlib
import json
from typing import Any

from quire_operator.plan import (
    DEPLOYMENT_LABEL,
    MANAGED_BY,
    SPEC_HASH_ANNOTATION,
    Deletion,
    Event,
    Manifest,
    ObjectKey,
    Observed,
    OperatorSettings,
    Plan,
)


def plan_small(deployment: Manifest, observed: Observed, settings: OperatorSettings) -> Plan:
    """Plan a StatefulSet, a Deployment, Services and policies; prune what is not wanted."""
    objects = tuple(with_hash(item) for item in _objects(deployment))
    wanted = {key_of(item) for item in objects}
    deletions = tuple(
        Deletion(key, live["metadata"]["uid"], "pruned")
        for key, live in observed.children.items()
        if key not in wanted and not live["metadata"].get("deletionTimestamp")
    )
    status = _status(deployment, observed)
    before = (deployment.get("status") or {}).get("phase")
    news = (
        (Event("Normal", status["phase"], f"phase is {status['phase']}"),)
        if before != status["phase"]
        else ()
    )
    return Plan(objects=objects, deletions=deletions, status=status, news=news)


def key_of(manifest: Manifest) -> ObjectKey:
    metadata = manifest["metadata"]
    return ObjectKey(
        manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
    )


def with_hash(manifest: Manifest) -> Manifest:
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"] | {"annotations": {SPEC_HASH_ANNOTATION: digest}}
    return manifest | {"metadata": metadata}


def _objects(deployment: Manifest) -> list[Manifest]:
    name = deployment["metadata"]["name"]
    spec = deployment["spec"]
    engine, router = f"{name}-engine", f"{name}-router"
    made = [
        _child(deployment, "v1", "ServiceAccount", engine, {}),
        _child(deployment, "v1", "ServiceAccount", router, {}),
        _child(deployment, "v1", "Service", engine, {"spec": _service(name, "engine", 8001)}),
        _child(deployment, "v1", "Service", router, {"spec": _service(name, "router", 80)}),
        _child(deployment, "apps/v1", "StatefulSet", engine, {"spec": _stateful_set(deployment)}),
        _child(deployment, "apps/v1", "Deployment", router, {"spec": _deployment(deployment)}),
        _child(
            deployment,
            "networking.k8s.io/v1",
            "NetworkPolicy",
            engine,
            {"spec": {"podSelector": {"matchLabels": _labels(name, "engine")}}},
        ),
    ]
    if spec.get("replicas", 1) > 1:
        budget = {"selector": {"matchLabels": _labels(name, "engine")}, "maxUnavailable": 1}
        made.append(
            _child(deployment, "policy/v1", "PodDisruptionBudget", engine, {"spec": budget})
        )
    return made


def _child(
    deployment: Manifest, api_version: str, kind: str, name: str, body: Manifest
) -> Manifest:
    metadata = deployment["metadata"]
    owner = {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                DEPLOYMENT_LABEL: metadata["name"],
                "app.kubernetes.io/managed-by": MANAGED_BY,
            },
            "ownerReferences": [owner],
        },
        **body,
    }


def _labels(name: str, component: str) -> dict[str, str]:
    return {DEPLOYMENT_LABEL: name, "app.kubernetes.io/component": component}


def _service(name: str, component: str, port: int) -> dict[str, Any]:
    return {
        "selector": _labels(name, component),
        "ports": [{"name": "main", "port": port, "targetPort": port, "protocol": "TCP"}],
    }


def _stateful_set(deployment: Manifest) -> dict[str, Any]:
    name, spec = deployment["metadata"]["name"], deployment["spec"]
    return {
        "replicas": spec.get("replicas", 1),
        "serviceName": f"{name}-engine",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": _labels(name, "engine")},
        "template": _template(deployment, "engine", {"cpu": "1000m", "memory": "1024Mi"}),
    }


def _deployment(deployment: Manifest) -> dict[str, Any]:
    name = deployment["metadata"]["name"]
    return {
        "replicas": 2,
        "selector": {"matchLabels": _labels(name, "router")},
        "template": _template(deployment, "router", {"cpu": "100m"}),
    }


def _template(deployment: Manifest, component: str, requests: dict[str, str]) -> dict[str, Any]:
    name, spec = deployment["metadata"]["name"], deployment["spec"]
    image = spec.get("engine", {}).get("image", "registry.k8s.io/pause:3.10")
    return {
        "metadata": {"labels": _labels(name, component)},
        "spec": {
            "containers": [
                {
                    "name": component,
                    "image": image if component == "engine" else "registry.k8s.io/pause:3.10",
                    "args": ["--model", spec["model"]["source"]],
                    "resources": {"requests": requests},
                    "env": [{"name": "A", "value": ""}],
                }
            ]
        },
    }


def _status(deployment: Manifest, observed: Observed) -> Manifest:
    engine = next(
        (live for key, live in observed.children.items() if key.kind == "StatefulSet"), {}
    )
    wanted = deployment["spec"].get("replicas", 1)
    state = engine.get("status", {})
    is_seen = state.get("observedGeneration") == engine.get("metadata", {}).get("generation")
    ready = state.get("readyReplicas", 0) if is_seen else 0
    updated = state.get("updatedReplicas", 0) if is_seen else 0
    is_ready = bool(engine) and ready == updated == wanted
    before = (deployment.get("status") or {}).get("conditions") or []
    status = "True" if is_ready else "False"
    since = observed.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    for condition in before:
        if condition["type"] == "Ready" and condition["status"] == status:
            since = condition["lastTransitionTime"]
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "phase": "Ready" if is_ready else "Pending",
        "replicas": state.get("replicas", 0),
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "conditions": [
            {
                "type": "Ready",
                "status": status,
                "reason": "Ready" if is_ready else "PodsNotReady",
                "message": f"{ready} of {wanted} replicas are ready",
                "observedGeneration": deployment["metadata"]["generation"],
                "lastTransitionTime": since,
            }
        ],
    }
