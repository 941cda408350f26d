"""A fleet's answers are those of its nodes, asked once or many times."""

from dataclasses import replace

from quire_operator.capacity import (
    Demand,
    Fleet,
    NodeFacts,
    NvlinkMode,
    Workload,
    examine,
    footprint_of_name,
)
from simulated_cluster import make_node

NODES = [
    make_node("sxm", product="NVIDIA-H100-80GB-HBM3", nvidia_com__gpu_clique="rack-1.0"),
    make_node("pcie", product="NVIDIA-L40S"),
]
PAIR = Demand(num_gpus=2, tensor_parallel_size=2, nvlink=NvlinkMode.REQUIRED)


def test_a_fleet_judges_as_its_nodes_one_by_one() -> None:
    footprint, workload = footprint_of_name("8B"), Workload(tensor_parallel_size=2)

    fit = Fleet(NODES).examine(PAIR, footprint, workload)

    assert fit == examine(PAIR, map(NodeFacts.from_manifest, NODES), footprint, workload)
    assert fit.eligible == ("sxm",)


def test_a_demand_that_differs_is_judged_anew() -> None:
    fleet = Fleet(NODES)
    here = replace(PAIR, node_selector={"kubernetes.io/hostname": "sxm"})
    there = replace(PAIR, node_selector={"kubernetes.io/hostname": "pcie"})

    assert fleet.examine(here, None, Workload()).eligible == ("sxm",)
    assert fleet.examine(there, None, Workload()).eligible == ()
    assert fleet.examine(here, None, Workload()) is fleet.examine(here, None, Workload())


def test_a_node_that_is_not_there_has_no_labels() -> None:
    fleet = Fleet(NODES)

    assert fleet.label("sxm", "nvidia.com/gpu.clique") == "rack-1.0"
    assert fleet.label("sxm", "other") == fleet.label("gone", "nvidia.com/gpu.clique") == ""
