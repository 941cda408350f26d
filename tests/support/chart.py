"""The chart as helm renders it."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chart_tools.manifests import Manifest, helm_template

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "quire"
HELM = Path(sys.executable).with_name("helm")

ALL_APIS = (
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "nfd.k8s-sigs.io/v1alpha1/NodeFeatureRule",
    "quire.dev/v1alpha1/LLMDeployment",
)
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"], "rbac": {"nodes": False}},
    "single": {
        "operator": {"replicas": 1, "topologySpreadConstraints": None},
        "metrics": {
            "service": False,
            "podMonitor": {"enabled": False},
            "rules": {"enabled": False},
        },
        "networkPolicy": {"enabled": False},
        "rbac": {"aggregate": False},
        "crds": {"enabled": False},
    },
    "everything": {
        "global": {
            "imageRegistry": "registry.test:5000",
            "imagePullSecrets": [{"name": "registry"}, {"name": "mirror"}],
        },
        "nameOverride": "llm",
        "fullnameOverride": "llm-serving",
        "commonLabels": {"team": "platform"},
        "crds": {"keep": False},
        "operator": {
            "replicas": 3,
            "image": {"digest": f"sha256:{'0123456789abcdef' * 4}", "pullPolicy": "Always"},
            "logLevel": "debug",
            "logFormat": "text",
            "extraArgs": ["--num-workers=16"],
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"example.test/team": "platform"},
            "podLabels": {"example.test/tier": "control"},
            "podDisruptionBudget": {"maxUnavailable": "50%"},
        },
        "serviceAccount": {"name": "quire-writer", "annotations": {"example.test/role": "quire"}},
        "rbac": {"secrets": True},
        "engine": {"image": {"tag": "0.1.0-cuda13", "pullPolicy": "Always"}},
        "router": {"image": {"registry": "", "tag": "0.1.1"}},
        "placement": {
            "nodes": "nvidia.com/gpu.present=true",
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "nvlinkLabel": "quire.dev/nvlink=true",
            "nodeFeatureRule": True,
        },
        "clusterDomain": "k8s.test",
        "metrics": {
            "prometheusAddress": "http://prometheus.monitoring:9090",
            "podMonitor": {"labels": {"release": "prometheus"}, "interval": "30s"},
            "rules": {
                "labels": {"release": "prometheus"},
                "alertLabels": {"team": "platform"},
                "runbookUrl": "https://wiki.test/quire",
                "disabled": ["QuireLoadSkewed"],
                "thresholds": {
                    "errorBudget": 0.01,
                    "firstTokenSeconds": 2.5,
                    "interTokenSeconds": 0.1,
                    "waitingPerReplica": 8,
                    "loadSkew": 2,
                },
            },
            "dashboards": {
                "enabled": True,
                "namespace": "monitoring",
                "labels": {"grafana_dashboard": "quire"},
                "annotations": {"grafana_folder": "LLM"},
            },
        },
        "networkPolicy": {
            "apiServerCidrs": ["198.18.0.1/32"],
            "apiServerPorts": [6443],
            "metricsNamespaces": ["monitoring"],
        },
        "deployments": [
            {
                "name": "first",
                "namespace": "default",
                "spec": {
                    "model": {"source": "demo://SmolLM2-135M-Instruct"},
                    "engine": {"device": "cpu"},
                },
            }
        ],
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}-extra"},
                "data": {"key": "value"},
            }
        ],
    },
}
"""Sets of values that together use every value of the chart."""


def render(
    values: Mapping[str, Any] | None = None,
    *flags: str,
    apis: tuple[str, ...] = (),
    kube_version: str = "1.34.0",
) -> list[Manifest]:
    """Render the chart with some values and the APIs that a cluster has."""
    capabilities = [f"--api-versions={api}" for api in apis]
    version = f"--kube-version={kube_version}"
    return helm_template(HELM, CHART, *set_flags(values or {}), version, *capabilities, *flags)


def set_flags(values: Mapping[str, Any]) -> list[str]:
    """Return helm's flags for some values."""
    return [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Return the objects of one kind, in order."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield name and pod spec of everything that makes pods."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], spec
        elif isinstance(spec, dict) and "template" in spec:
            yield manifest["metadata"]["name"], spec["template"]["spec"]
