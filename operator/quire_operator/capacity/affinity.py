"""The same placement rules in the scheduler's language."""

from typing import Any

from quire_operator.capacity.demand import Demand


def node_selector_terms(demand: Demand) -> list[dict[str, Any]]:
    """Return nodeSelectorTerms that admit exactly the nodes whose hardware `examine` accepts.

    For `requiredDuringSchedulingIgnoredDuringExecution`: products, NVLink if it is required, GPUs
    on the node (nvidia.com/gpu.count), no MIG. Empty: no rule is needed. Taints, `node_selector`
    and memory of unlabelled nodes stay with the scheduler.
    """
    raise NotImplementedError
