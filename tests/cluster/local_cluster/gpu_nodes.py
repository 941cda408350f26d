"""Simulated GPU nodes, labelled as NVIDIA's GPU feature discovery labels real ones.

KWOK keeps them Ready and walks the pods bound to them through their phases; nothing runs there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GPU_TAINT: Mapping[str, str] = {
    "key": "nvidia.com/gpu",
    "value": "present",
    "effect": "NoSchedule",
}

KWOK_OPTIONS: Mapping[str, Any] = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    "options": {
        # Four at a time are too few for 200 nodes' Leases where the API server is slow to answer.
        "nodeLeaseParallelism": 32,
        "nodePlayStageParallelism": 16,
        "podPlayStageParallelism": 16,
    },
}

NODE_STAGE: Mapping[str, Any] = {
    "apiVersion": "kwok.x-k8s.io/v1alpha1",
    "kind": "Stage",
    "metadata": {"name": "node-ready"},
    "spec": {
        "resourceRef": {"apiGroup": "v1", "kind": "Node"},
        "selector": {
            "matchExpressions": [
                {
                    "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
                    "operator": "NotIn",
                    "values": ["True"],
                }
            ]
        },
        "next": {
            "statusTemplate": """
phase: Running
addresses: [{type: InternalIP, address: {{ NodeIP | Quote }}}]
nodeInfo: {architecture: amd64, operatingSystem: linux, kubeletVersion: kwok}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
{{ end }}
"""
        },
    },
}
"""How a node becomes Ready. Where there are Leases, KWOK's own stages go on to write every node's
status twice a minute, which kubelets leave to the Lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """What feature discovery says of a GPU."""

    product: str
    family: str
    memory_mib: int
    compute_major: int
    compute_minor: int


H100_SXM = GpuModel(
    product="NVIDIA-H100-80GB-HBM3",
    family="hopper",
    memory_mib=81559,
    compute_major=9,
    compute_minor=0,
)
H100_PCIE = GpuModel(
    product="NVIDIA-H100-PCIe",
    family="hopper",
    memory_mib=81559,
    compute_major=9,
    compute_minor=0,
)
H200_SXM = GpuModel(
    product="NVIDIA-H200",
    family="hopper",
    memory_mib=143771,
    compute_major=9,
    compute_minor=0,
)
A100_SXM = GpuModel(
    product="NVIDIA-A100-SXM4-80GB",
    family="ampere",
    memory_mib=81920,
    compute_major=8,
    compute_minor=0,
)
L40S = GpuModel(
    product="NVIDIA-L40S",
    family="ada-lovelace",
    memory_mib=46068,
    compute_major=8,
    compute_minor=9,
)
GB200 = GpuModel(
    product="NVIDIA-GB200",
    family="blackwell",
    memory_mib=189471,
    compute_major=10,
    compute_minor=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNode:
    """One simulated node; `gpu=None` makes it a node without GPUs."""

    name: str
    gpu: GpuModel | None = H100_SXM
    num_gpus: int = 8
    clique: str | None = None
    """NVLink domain and clique of a rack, for example "rack-1.0"."""
    mig_strategy: str = "none"
    zone: str = "zone-a"
    cpu: str = "128"
    memory: str = "2Ti"
    max_pods: int = 250
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] | None = None
    """None: GPU nodes carry `GPU_TAINT`, others none."""

    def manifest(self) -> dict[str, Any]:
        """Return the Node object."""
        resources = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.max_pods)}
        resources["ephemeral-storage"] = "1Ti"
        if self.gpu is not None:
            resources["nvidia.com/gpu"] = str(self.num_gpus)
        default_taints = [] if self.gpu is None else [GPU_TAINT]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {**self._labels(), **self.labels},
            },
            "spec": {"taints": list(default_taints if self.taints is None else self.taints)},
            "status": {"capacity": resources, "allocatable": resources},
        }

    def _labels(self) -> dict[str, str]:
        labels = {
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": self.name,
            "topology.kubernetes.io/zone": self.zone,
            "type": "kwok",
        }
        if self.gpu is None:
            return labels
        gpu = {
            "gpu.present": "true",
            "gpu.product": self.gpu.product,
            "gpu.family": self.gpu.family,
            "gpu.count": str(self.num_gpus),
            "gpu.replicas": "1",
            "gpu.memory": str(self.gpu.memory_mib),
            "gpu.compute.major": str(self.gpu.compute_major),
            "gpu.compute.minor": str(self.gpu.compute_minor),
            "mig.strategy": self.mig_strategy,
            "mig.capable": "true",
            "cuda.driver-version.major": "570",
        }
        if self.clique is not None:
            gpu["gpu.clique"] = self.clique
        return labels | {f"nvidia.com/{name}": value for name, value in gpu.items()}
