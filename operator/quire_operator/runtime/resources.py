"""The kinds that the operator watches, and what the API server has of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from quire_operator.plan import Manifest

GROUP = "quire.dev"
API_VERSION = "quire.dev/v1alpha1"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API server serves it."""

    api_version: str
    kind: str
    plural: str
    is_namespaced: bool = True

    @property
    def api(self) -> tuple[str, str]:
        """(apiVersion, kind), by which plans name it."""
        return self.api_version, self.kind

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection, an object or its subresource."""
        root = "/apis" if "/" in self.api_version else "/api"
        parts = [root, self.api_version]
        if namespace and self.is_namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


DEPLOYMENTS = Resource(API_VERSION, KIND, PLURAL)
NODES = Resource("v1", "Node", "nodes", is_namespaced=False)
PODS = Resource("v1", "Pod", "pods")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
EVENTS = Resource("v1", "Event", "events")
SECRETS = Resource("v1", "Secret", "secrets")
CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")

BUILT_IN_CHILDREN = (
    Resource("apps/v1", "StatefulSet", "statefulsets"),
    Resource("apps/v1", "Deployment", "deployments"),
    Resource("batch/v1", "Job", "jobs"),
    Resource("v1", "Service", "services"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("v1", "ConfigMap", "configmaps"),
    CLAIMS,
    Resource("rbac.authorization.k8s.io/v1", "Role", "roles"),
    Resource("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
)
"""Kinds that every supported Kubernetes serves."""

OPTIONAL_CHILDREN = (
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("scheduling.x-k8s.io/v1alpha1", "PodGroup"),
    ("scheduling.volcano.sh/v1beta1", "PodGroup"),
    ("scheduling.k8s.io/v1alpha1", "Workload"),
    ("scheduling.k8s.io/v1beta1", "PodGroup"),
    ("resource.k8s.io/v1", "ResourceClaimTemplate"),
    ("resource.nvidia.com/v1beta1", "ComputeDomain"),
)
"""Kinds that are used where the server has them, and never missed where it has not."""


def by_api(resources: Iterable[Resource]) -> dict[tuple[str, str], Resource]:
    """Index resources by (apiVersion, kind)."""
    return {resource.api: resource for resource in resources}


def revision(manifest: Manifest) -> int:
    """Return an object's resource version as a number; -1 where it has none.

    Versions of one resource grow with every write, so the greater of two is the newer.
    """
    try:
        return int(manifest["metadata"]["resourceVersion"])
    except (KeyError, ValueError):
        return -1
