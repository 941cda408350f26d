"""What one pod of a deployment wants of the node that it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from quire_operator.capacity.nodes import GPU_RESOURCE, Taint


class NvlinkMode(Enum):
    """What NVLink between a pod's GPUs is to the deployment; values as in the spec."""

    REQUIRED = "Required"
    PREFERRED = "Preferred"
    IGNORED = "Ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A toleration as in a pod's spec; empty key tolerates every taint."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Tell whether it covers a taint, by the rules of Kubernetes."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one pod wants. `num_gpus` 0 is a pod for a CPU: any node will do."""

    num_gpus: int
    """GPUs of one pod: tensor * pipeline / nodesPerReplica."""
    tensor_parallel_size: int = 1
    num_pods: int = 1
    """Pods that are to run at once: replicas * nodesPerReplica."""
    resource: str = GPU_RESOURCE
    nvlink: NvlinkMode = NvlinkMode.IGNORED
    nvlink_label: tuple[str, str] | None = None
    """A label and its value that nodes with NVLink have, for products that we do not know."""
    products: tuple[str, ...] = ()
    """Acceptable values of nvidia.com/gpu.product; empty: any."""
    min_gpu_bytes: int = 0
    """Smallest GPU that the user accepts."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
