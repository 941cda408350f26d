"""What the administrator of the operator decides for every deployment."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """Defaults and switches of one operator process."""

    engine_image: str = "ghcr.io/quire-dev/quire-engine:0.1.0"
    """Image of engine pods where a deployment names none."""
    router_image: str = "ghcr.io/quire-dev/quire-router:0.1.0"
    """Image of router pods; the routers are the operator's, so no deployment names one."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of router pods, and of engine pods where a deployment gives none."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in the deployment's namespace, for both images."""
    cluster_domain: str = "cluster.local"
    """DNS domain of the cluster, for the URL in status."""
    metrics_namespaces: tuple[str, ...] = ()
    """Namespaces that may scrape engine and router metrics; empty: every namespace."""
    pod_monitor_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the Prometheus of this cluster selects PodMonitors by."""
    nvlink_label: tuple[str, str] | None = None
    """Label (key, value) of nodes whose GPUs share NVLink, where their products do not say it."""
    prometheus_address: str = ""
    """URL of the Prometheus that KEDA asks where a deployment names none."""
    network_policies: bool = True
    """Whether deployments may have NetworkPolicies at all."""
    pod_monitors: bool = True
    """Whether deployments may have PodMonitors at all."""
    default_tolerations: tuple[Mapping[str, str], ...] = ()
    """Tolerations of every engine pod, besides the GPU resource's own."""
    pipeline_parallelism: bool = False
    """Whether the engine image can run a replica over several stages or nodes."""
    adapters: bool = False
    """Whether the engine image serves LoRA adapters."""
