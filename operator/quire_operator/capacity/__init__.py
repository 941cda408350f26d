"""What a model needs of a GPU, and which nodes have it: pure arithmetic, no network, no clock.

    Footprint   bytes of a model: from its config.json, from numbers in a spec, or from "8B"
    plan_memory one GPU's share of it: weights, overhead, cache; how many tokens and requests fit
    Gpu         a product as GPU Feature Discovery labels it: memory, NVLink
    NodeFacts   what a Node manifest says of its GPUs
    Demand      what one pod wants of a node
    examine     every node's verdict on a demand, with the reason in words
    Fleet       the nodes of a cluster, read once and judged once for each demand

Imports nothing but the standard library: `quire plan` uses it on machines without kopf.
"""

from quire_operator.capacity.affinity import node_preferences, node_selector_terms
from quire_operator.capacity.demand import Demand, NvlinkMode, Toleration
from quire_operator.capacity.errors import CapacityError
from quire_operator.capacity.fitting import Fit, examine
from quire_operator.capacity.fleet import Fleet
from quire_operator.capacity.footprint import Footprint, footprint_of_config, footprint_of_sizes
from quire_operator.capacity.gpus import GPUS, Gpu, Link, find_gpu, gpu_of_product, nvlink_products
from quire_operator.capacity.memory import MemoryPlan, Workload, plan_memory
from quire_operator.capacity.names import footprint_of_name
from quire_operator.capacity.nodes import NodeFacts, Taint
from quire_operator.capacity.tensor_parallel import check_tensor_parallel, tensor_parallel_sizes
from quire_operator.capacity.units import GIB, gib, parse_bytes
from quire_operator.capacity.verdict import Reason, Verdict

__all__ = [
    "GIB",
    "GPUS",
    "CapacityError",
    "Demand",
    "Fit",
    "Fleet",
    "Footprint",
    "Gpu",
    "Link",
    "MemoryPlan",
    "NodeFacts",
    "NvlinkMode",
    "Reason",
    "Taint",
    "Toleration",
    "Verdict",
    "Workload",
    "check_tensor_parallel",
    "examine",
    "find_gpu",
    "footprint_of_config",
    "footprint_of_name",
    "footprint_of_sizes",
    "gib",
    "gpu_of_product",
    "node_preferences",
    "node_selector_terms",
    "nvlink_products",
    "parse_bytes",
    "plan_memory",
    "tensor_parallel_sizes",
]
