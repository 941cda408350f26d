"""The same placement rules in the scheduler's language."""

from collections.abc import Sequence
from typing import Any

from quire_operator.capacity.demand import Demand, NvlinkMode
from quire_operator.capacity.gpus import nvlink_products
from quire_operator.capacity.nodes import (
    COUNT_LABEL,
    MEMORY_LABEL,
    PRODUCT_LABEL,
    SHARING_LABEL,
    SLICES_LABEL,
)
from quire_operator.capacity.units import MIB

SHARING_STRATEGIES = ("mps", "time-slicing")
PREFERENCE_WEIGHT = 100

Term = dict[str, Any]


def node_selector_terms(demand: Demand) -> list[Term]:
    """Return nodeSelectorTerms that admit the nodes whose hardware `examine` accepts.

    For `requiredDuringSchedulingIgnoredDuringExecution`: products, NVLink if it is required, GPUs
    on the node (nvidia.com/gpu.count), no MIG. Empty: no rule is needed. Taints, `node_selector`
    and whether GPUs are free stay with the scheduler; memory follows from the model, of which the
    user knows more than we do, so only `min_gpu_bytes` is enforced.
    """
    if demand.num_gpus == 0:
        return []
    if demand.needs_nvlink:
        return _nvlink_terms(demand)
    rules = [*_product_rule(demand.products), *_memory_rule(demand), *_no_slices(demand)]
    return [_term(rules)]


def node_preferences(demand: Demand) -> list[Term]:
    """Return terms for `preferredDuringSchedulingIgnoredDuringExecution`: NVLink, if preferred."""
    if demand.nvlink is not NvlinkMode.PREFERRED or demand.link_size < 2:
        return []
    terms = _nvlink_terms(demand)
    return [{"weight": PREFERENCE_WEIGHT, "preference": term} for term in terms]


def _nvlink_terms(demand: Demand) -> list[Term]:
    """Return two alternatives: products that we know, and nodes that are labelled."""
    common = [_rule(COUNT_LABEL, "Gt", str(demand.num_gpus - 1)), *_memory_rule(demand)]
    if demand.spans_nodes:
        common.append(_rule(demand.domain_label, "Exists"))
    if demand.link_size < 2:
        return [_term([*_product_rule(demand.products), *common, *_no_slices(demand)])]
    known = nvlink_products(demand.link_size)
    accepted = [name for name in known if not demand.products or name in demand.products]
    key, value = demand.nvlink_label
    labelled = [_rule(key, "In", value), *_product_rule(demand.products), *common]
    terms = [_term([*_product_rule(accepted), *common, *_no_slices(demand)])] if accepted else []
    return [*terms, _term([*labelled, *_no_slices(demand)])]


def _product_rule(products: Sequence[str]) -> list[Term]:
    return [_rule(PRODUCT_LABEL, "In", *products)] if products else []


def _memory_rule(demand: Demand) -> list[Term]:
    if not demand.min_gpu_bytes:
        return []
    least_mib = -(-demand.min_gpu_bytes // MIB)
    return [_rule(MEMORY_LABEL, "Gt", str(least_mib - 1))]


def _no_slices(demand: Demand) -> list[Term]:
    rules = [_rule(SLICES_LABEL, "DoesNotExist")]
    if demand.num_gpus > 1:
        rules.append(_rule(SHARING_LABEL, "NotIn", *SHARING_STRATEGIES))
    return rules


def _rule(key: str, operator: str, *values: str) -> Term:
    rule: Term = {"key": key, "operator": operator}
    return rule | {"values": list(values)} if values else rule


def _term(rules: Sequence[Term]) -> Term:
    return {"matchExpressions": list(rules)}
