"""Placement: a table of nodes and demands, with the reasons in words."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_operator.capacity import (
    GPUS,
    Demand,
    Fit,
    NodeFacts,
    NvlinkMode,
    Reason,
    Taint,
    Toleration,
    Workload,
    examine,
    footprint_of_name,
    footprint_of_sizes,
    node_preferences,
    node_selector_terms,
)

H100, L40S, A10 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S", "NVIDIA-A10"
MEMORY_MIB = {gpu.product: gpu.memory_mib for gpu in GPUS}


def manifest(
    name: str, product: str = "", num_gpus: int = 0, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    gfd = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(num_gpus),
        "nvidia.com/gpu.memory": str(MEMORY_MIB.get(product, 0)),
    }
    return {
        "metadata": {"name": name, "labels": (gfd if product else {}) | dict(labels or {})},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/gpu": str(num_gpus)} if num_gpus else {},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def node(
    name: str, product: str = "", num_gpus: int = 0, labels: Mapping[str, str] | None = None
) -> NodeFacts:
    return NodeFacts.from_manifest(manifest(name, product, num_gpus, labels))


def tensor(size: int, **rest: Any) -> Demand:
    return Demand(
        num_gpus=size, tensor_parallel_size=size, **{"nvlink": NvlinkMode.REQUIRED, **rest}
    )


def reasons(fit: Fit) -> Mapping[str, Reason]:
    return {verdict.node: verdict.reason for verdict in fit.verdicts}


def said(fit: Fit, name: str) -> str:
    return next(verdict.message for verdict in fit.verdicts if verdict.node == name)


def fit_of(demand: Demand, *nodes: NodeFacts, model: str = "8B") -> Fit:
    workload = Workload(tensor_parallel_size=demand.tensor_parallel_size)
    return examine(demand, nodes, footprint_of_name(model), workload)


def test_a_gpu_that_is_too_small_says_by_how_many_gib() -> None:
    footprint = footprint_of_sizes(
        weight_bytes=125 << 30, kv_bytes_per_token=1 << 17, max_position=8192
    )
    demand = Demand(num_gpus=2, tensor_parallel_size=2)

    fit = examine(demand, [node("node-3", A10, 2)], footprint, Workload(tensor_parallel_size=2))

    assert fit.reason is Reason.VRAM_TOO_SMALL
    assert fit.message == (
        "none of 1 node can run it. node-3: needs 75.1 GiB on each of 2 GPUs, has 2x NVIDIA-A10 "
        "with 22.5 GiB; short 52.7 GiB. next: use larger GPUs, raise parallelism.tensor, lower "
        "model.maxModelLen, or quantize the model"
    )


def test_tensor_parallel_groups_go_to_nvlink_nodes_only() -> None:
    fit = fit_of(
        tensor(4),
        node("hgx", H100, 8),
        node("pcie", L40S, 8),
        node("pair", "NVIDIA-H100-NVL", 4),
        node("new", "NVIDIA-X100", 8),
        node("marked", "NVIDIA-X100", 8, {"quire.dev/nvlink": "true"}),
    )

    assert fit.eligible == ("hgx", "marked")
    assert fit.num_slots == 4
    assert said(fit, "pcie") == "has NVIDIA-L40S without NVLink"
    assert said(fit, "pair") == "has NVIDIA-H100-NVL, of which NVLink joins 2, not 4"
    assert said(fit, "new").endswith("if it does, label the node quire.dev/nvlink=true")


def test_nvlink_that_is_preferred_or_ignored_keeps_no_node_away() -> None:
    for mode in (NvlinkMode.PREFERRED, NvlinkMode.IGNORED):
        assert fit_of(tensor(2, nvlink=mode), node("pcie", L40S, 2)).fits


def test_a_single_gpu_needs_no_nvlink() -> None:
    assert fit_of(tensor(1), node("pcie", L40S, 1)).fits


def test_mig_slices_are_no_gpus() -> None:
    sliced = node("sliced", f"{H100}-MIG-1g.10gb", 56, {"nvidia.com/gpu.slices.gi": "1"})
    whole = node("whole", H100, 8, {"nvidia.com/mig.strategy": "single"})

    fit = fit_of(tensor(2), sliced, whole)

    assert fit.eligible == ("whole",)
    assert said(fit, "sliced") == "its GPUs are MIG slices (NVIDIA-H100-80GB-HBM3-MIG-1g.10gb)"


def test_time_sliced_gpus_may_be_the_same_one() -> None:
    shared = node("shared", f"{L40S}-SHARED", 4)
    labelled = node("labelled", L40S, 4, {"nvidia.com/gpu.sharing-strategy": "time-slicing"})

    fit = fit_of(Demand(num_gpus=2, tensor_parallel_size=2), shared, labelled)

    assert fit.eligible == ()
    assert said(fit, "labelled") == "its GPUs are time-sliced, so 2 of them may be one"
    assert fit_of(tensor(1), shared).reason is Reason.FITS


def test_nodes_are_judged_by_what_scheduling_says_of_them() -> None:
    broken = manifest("broken", H100, 8) | {"status": {"conditions": []}}
    cordoned = manifest("cordoned", H100, 8) | {"spec": {"unschedulable": True}}
    tainted = manifest("tainted", H100, 8) | {
        "spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}
    }
    manifests = [broken, cordoned, tainted, manifest("other", H100, 8), manifest("cpu")]
    demand = tensor(2, node_selector={"zone": "z1"})
    fit = fit_of(demand, *(NodeFacts.from_manifest(item) for item in manifests))

    assert fit.reason is Reason.NO_ELIGIBLE_NODES
    assert said(fit, "broken") == "is not Ready"
    assert said(fit, "cordoned") == "is cordoned"
    assert said(fit, "other") == "lacks the label zone=z1 of placement.nodeSelector"
    without_selector = fit_of(tensor(2), NodeFacts.from_manifest(tainted), node("cpu"))
    assert said(without_selector, "tainted") == (
        "has the taint team=a:NoSchedule, which placement.tolerations does not tolerate"
    )
    assert said(without_selector, "cpu") == "has no nvidia.com/gpu"


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        (Toleration(key="team", value="a"), True),
        (Toleration(key="team", value="b"), False),
        (Toleration(key="team", operator="Exists"), True),
        (Toleration(key="team", operator="Exists", effect="NoExecute"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(), False),
        (Toleration(key="other", operator="Exists"), False),
    ],
)
def test_tolerations_cover_taints_as_in_kubernetes(toleration: Toleration, covers: bool) -> None:
    taint = Taint(key="team", value="a", effect="NoSchedule")

    assert toleration.tolerates(taint) is covers


def test_a_tolerated_taint_and_a_soft_one_keep_nobody_away() -> None:
    item = manifest("hgx", H100, 8) | {
        "spec": {
            "taints": [
                {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
                {"key": "busy", "effect": "PreferNoSchedule"},
            ]
        }
    }
    tolerant = tensor(2, tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists"),))

    assert fit_of(tolerant, NodeFacts.from_manifest(item)).fits


def test_room_for_too_few_replicas_is_told() -> None:
    fit = fit_of(tensor(4, num_replicas=3), node("hgx", H100, 8))

    assert fit.reason is Reason.NOT_ENOUGH_GPUS
    assert fit.message.startswith(
        "1 of 1 node can run it, with room for 2 replicas were they empty, and 3 are wanted"
    )


def test_too_few_gpus_on_a_node_are_counted() -> None:
    fit = fit_of(tensor(4), node("small", H100, 2))

    assert fit.reason is Reason.NOT_ENOUGH_GPUS
    assert said(fit, "small") == "has 2 of 4 nvidia.com/gpu"


def test_groups_over_nodes_stay_in_one_nvlink_domain() -> None:
    racks = [
        node(f"rack{rack}-{tray}", "NVIDIA-GB200", 4, {"nvidia.com/gpu.clique": f"c.{rack}"})
        for rack in range(2)
        for tray in range(3)
    ]
    demand = Demand(
        num_gpus=4, tensor_parallel_size=8, pods_per_replica=2, nvlink=NvlinkMode.REQUIRED
    )

    fit = fit_of(demand, *racks, node("alone", H100, 8), model="70B")

    assert fit.num_slots == 2
    other_label = replace(demand, domain_label="rack")
    assert "(label rack)" in said(fit_of(other_label, racks[0], model="70B"), "rack0-0")
    assert {"key": "rack", "operator": "Exists"} in (
        node_selector_terms(other_label)[0]["matchExpressions"]
    )
    assert "is in no multi-node NVLink domain" in said(fit, "alone")


def test_products_and_memory_that_the_user_wants_are_kept() -> None:
    demand = Demand(num_gpus=1, products=(A10, L40S), min_gpu_bytes=40 << 30)

    fit = fit_of(demand, node("a10", A10, 1), node("l40s", L40S, 1), node("h100", H100, 1))

    assert fit.eligible == ("l40s",)
    assert said(fit, "h100") == "has NVIDIA-H100-80GB-HBM3, not NVIDIA-A10, NVIDIA-L40S"
    assert said(fit, "a10").startswith("needs 40.0 GiB on its GPU, has 1x NVIDIA-A10 with 22.5")


def test_an_unknown_model_leaves_memory_unjudged() -> None:
    fit = examine(tensor(2), [node("hgx", H100, 8)])

    assert fit.reason is Reason.UNKNOWN
    assert fit.eligible == ("hgx",)
    assert "memory was not checked" in fit.message


def test_a_group_that_the_model_cannot_have_is_told_as_such() -> None:
    footprint = footprint_of_sizes(
        weight_bytes=1 << 30,
        kv_bytes_per_token=1024,
        max_position=4096,
        num_heads=32,
        num_kv_heads=8,
    )
    fit = examine(tensor(3), [node("hgx", H100, 8)], footprint, Workload(tensor_parallel_size=3))

    assert not fit.fits
    assert fit.message.endswith("1, 2, 4 and 8 do")


def test_a_pod_for_a_cpu_goes_anywhere() -> None:
    fit = examine(Demand(num_gpus=0, num_replicas=5), [node("cpu")])

    assert fit.fits
    assert node_selector_terms(Demand(num_gpus=0)) == []


def test_no_node_at_all_is_said_so() -> None:
    assert examine(tensor(1), []).message.startswith("there is no node to look at")


def test_messages_stay_short_however_many_nodes_there_are() -> None:
    nodes = [node(f"node-{i}", A10, 1 + i % 9) for i in range(500)]

    fit = fit_of(tensor(16), *nodes)

    assert len(fit.message) < 1000
    assert "and 5" in fit.message
    assert "more nodes for other reasons" in fit.message


PRODUCTS = [H100, L40S, "NVIDIA-H100-NVL", "NVIDIA-X100", f"{H100}-MIG-1g.10gb", "NVIDIA-GB200"]


@st.composite
def gpu_nodes(draw: st.DrawFn) -> NodeFacts:
    product = draw(st.sampled_from(PRODUCTS))
    num_gpus = draw(st.sampled_from([1, 2, 4, 8]))
    labels: dict[str, str] = {}
    if "MIG" in product:
        labels["nvidia.com/gpu.slices.gi"] = "1"
    if draw(st.booleans()):
        labels["quire.dev/nvlink"] = draw(st.sampled_from(["true", "false"]))
    if draw(st.booleans()):
        labels["nvidia.com/gpu.clique"] = "c.1"
    if draw(st.booleans()):
        labels["nvidia.com/gpu.sharing-strategy"] = draw(st.sampled_from(["none", "mps"]))
    return node("n", product, num_gpus, labels)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    num_gpus = draw(st.sampled_from([1, 2, 4, 8]))
    return Demand(
        num_gpus=num_gpus,
        tensor_parallel_size=num_gpus * draw(st.sampled_from([1, 2])),
        nvlink=draw(st.sampled_from(NvlinkMode)),
        products=tuple(draw(st.sets(st.sampled_from([H100, L40S, "NVIDIA-X100"])))),
        min_gpu_bytes=draw(st.sampled_from([0, 40 << 30, 90 << 30])),
    )


def admits(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Evaluate a nodeSelectorTerm as the scheduler does."""
    return all(_matches(rule, labels) for rule in term["matchExpressions"])


def _matches(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(rule["key"]), rule.get("values", [])
    match rule["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
    raise AssertionError(rule)


@given(demand=demands(), facts=gpu_nodes())
def test_the_scheduler_admits_what_examine_accepts(demand: Demand, facts: NodeFacts) -> None:
    accepts = bool(examine(demand, [facts]).eligible)
    admitted = any(admits(term, facts.labels) for term in node_selector_terms(demand))

    # Whether so many GPUs are there is the scheduler's own question.
    has_gpus = facts.num_gpus >= demand.num_gpus
    assert accepts == (admitted and has_gpus)


def test_a_preference_for_nvlink_is_one() -> None:
    preferred = tensor(2, nvlink=NvlinkMode.PREFERRED)

    assert [item["weight"] for item in node_preferences(preferred)] == [100, 100]
    assert node_preferences(tensor(2)) == []
