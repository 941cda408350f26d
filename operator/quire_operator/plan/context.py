"""What every part of a plan is made from: one deployment, its spec read, and its surroundings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api import API_VERSION, KIND, DeploymentSpec, Source
from quire_operator.plan.contract import Manifest, ObjectKey, Observed
from quire_operator.plan.labels import component_labels
from quire_operator.plan.settings import OperatorSettings

GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One deployment at one moment."""

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: Mapping[str, str]
    status: Mapping[str, Any]
    """What the last plan said."""
    spec: DeploymentSpec
    observed: Observed
    settings: OperatorSettings

    @property
    def source(self) -> Source:
        return Source.parse(self.spec.model.source)

    @property
    def num_replicas(self) -> int:
        """Replicas that should run."""
        return 0 if self.spec.suspend else self.spec.replicas

    @property
    def is_grouped(self) -> bool:
        """Whether a replica is several pods."""
        return self.spec.parallelism.nodes_per_replica > 1

    @property
    def gpus_per_pod(self) -> int:
        parallelism = self.spec.parallelism
        if self.spec.engine.device == "cpu":
            return 0
        return parallelism.tensor * parallelism.pipeline // parallelism.nodes_per_replica

    @property
    def gpus_per_replica(self) -> int:
        return self.gpus_per_pod * self.spec.parallelism.nodes_per_replica

    @property
    def gpu_resource(self) -> str:
        return self.spec.resources.gpu_resource_name or GPU_RESOURCE

    @property
    def engine_name(self) -> str:
        """Name of the engines' StatefulSet and of their Service."""
        return f"{self.name}-engine"

    @property
    def router_name(self) -> str:
        return f"{self.name}-router"

    def group_name(self, index: int) -> str:
        """Return the name of the StatefulSet that is one replica of several pods."""
        return f"{self.name}-r{index}"

    def labels(self, component: str) -> dict[str, str]:
        return component_labels(self.name, component)

    def key(self, api_version: str, kind: str, name: str) -> ObjectKey:
        return ObjectKey(api_version, kind, self.namespace, name)

    def live(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """Return the child as it is, if it is."""
        return self.observed.children.get(self.key(api_version, kind, name))

    def has_api(self, api_version: str, kind: str) -> bool:
        """Tell whether the server has an optional kind."""
        return (api_version, kind) in self.observed.apis

    def child(
        self,
        api_version: str,
        kind: str,
        name: str,
        component: str,
        *,
        is_owned: bool = True,
        annotations: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Manifest:
        """Return a child with its metadata; `fields` are what is beside it, as `spec`.

        One that is not owned survives the deployment.
        """
        metadata: dict[str, Any] = {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(component),
        }
        if annotations:
            metadata["annotations"] = dict(annotations)
        if is_owned:
            metadata["ownerReferences"] = [self._owner_reference()]
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata} | fields

    def _owner_reference(self) -> dict[str, Any]:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
