"""What one pod of a deployment wants of the node that it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from quire_operator.capacity.nodes import CLIQUE_LABEL, GPU_RESOURCE, Taint

NVLINK_LABEL = ("quire.dev/nvlink", "true")
"""Label of nodes whose GPUs are joined by NVLink, for products that we do not know."""


class NvlinkMode(Enum):
    """What NVLink between a pod's GPUs is to the deployment; values as in the spec."""

    REQUIRED = "Required"
    PREFERRED = "Preferred"
    IGNORED = "Ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A toleration as in a pod's spec; an empty key with operator Exists tolerates every taint."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Tell whether it covers a taint, by the rules of Kubernetes."""
        if self.effect and self.effect != taint.effect:
            return False
        if not self.key:
            return self.operator == "Exists"
        if self.key != taint.key:
            return False
        return self.operator == "Exists" or self.value == taint.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one pod wants. `num_gpus` 0 is a pod for a CPU: any node will do."""

    num_gpus: int
    """GPUs of one pod: tensor * pipeline / nodesPerReplica."""
    tensor_parallel_size: int = 1
    """More than `num_gpus` is a group that spans nodes of one multi-node NVLink domain."""
    num_replicas: int = 1
    """Replicas that are to run at once."""
    pods_per_replica: int = 1
    """Pods of a replica, each on a node of its own: nodesPerReplica."""
    resource: str = GPU_RESOURCE
    nvlink: NvlinkMode = NvlinkMode.IGNORED
    nvlink_label: tuple[str, str] = NVLINK_LABEL
    """A label and its value that nodes with NVLink have, whatever their product."""
    domain_label: str = CLIQUE_LABEL
    """Label that the nodes of one multi-node NVLink domain share, value and all."""
    products: tuple[str, ...] = ()
    """Acceptable values of nvidia.com/gpu.product; empty: any."""
    min_gpu_bytes: int = 0
    """Smallest GPU that the user accepts."""
    # Left out of the hash, which mappings have not; equality still looks at it.
    node_selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    tolerations: tuple[Toleration, ...] = ()

    @property
    def link_size(self) -> int:
        """GPUs of one node that have to be joined; 1: none have to."""
        return min(self.tensor_parallel_size, self.num_gpus)

    @property
    def needs_nvlink(self) -> bool:
        """Whether only nodes with NVLink will do."""
        return self.nvlink is NvlinkMode.REQUIRED and self.tensor_parallel_size > 1

    @property
    def spans_nodes(self) -> bool:
        """Whether the GPUs of one tensor-parallel group are on several nodes."""
        return self.tensor_parallel_size > self.num_gpus > 0
