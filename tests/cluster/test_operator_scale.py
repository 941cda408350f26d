"""Many deployments on many simulated nodes: how long, how many writes, and silence afterwards.

The size is small by default. The full one is a command:

    QUIRE_SCALE=200x1000 .venv/bin/pytest tests/cluster/test_operator_scale.py
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from local_cluster.cluster import LocalCluster
from local_cluster.cpu import cpu_milliseconds
from local_cluster.gpu_nodes import H100_SXM, H200_SXM, L40S, SimulatedNode
from operator_process import OperatorProcess, operator_process
from operator_runs import api_client, eventually, llm
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS, PODS

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(3000)]

CRDS = Path(__file__).parents[2] / "crds"
NUM_NODES, NUM_DEPLOYMENTS = map(int, os.environ.get("QUIRE_SCALE", "20x40").split("x"))
FLAGS = ("--no-leader-election", "--log-level=warning")
QUIET_S = 20.0
"""Longer than the time between two reports of progress."""
IDLE_S = 30.0
POLL_S = 1.0 if NUM_DEPLOYMENTS < 100 else 5.0
"""A scrape of a thousand deployments takes the operator a quarter of a second."""
PRODUCT = "nvidia.com/gpu.product"


@pytest.fixture(scope="module")
def prepared(control_plane: LocalCluster) -> LocalCluster:
    for crd in CRDS.glob("*.yaml"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    models = (H100_SXM, H200_SXM, L40S)
    nodes = [
        SimulatedNode(name=f"gpu-{index:03d}", gpu=models[index % 3]) for index in range(NUM_NODES)
    ]
    cpus = [SimulatedNode(name=f"cpu-{index}", gpu=None) for index in range(NUM_NODES // 10 + 1)]
    control_plane.add_simulated_nodes([*nodes, *cpus])
    control_plane.wait_until(
        "all nodes take pods",
        lambda: not any(_has_not_ready_taint(node) for node in control_plane.items("node")),
        timeout_s=300,
    )
    return control_plane


SXM = {H100_SXM.product, H200_SXM.product}
ANY = SXM | {L40S.product}
PLACEMENTS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "one GPU goes anywhere": ({}, "Fits", ANY),
    "a pair wants NVLink": ({"parallelism": {"tensor": 2}}, "Fits", SXM),
    "eight want NVLink": ({"parallelism": {"tensor": 8}}, "Fits", SXM),
    "a pair that does not care": (
        {
            "parallelism": {"tensor": 2},
            "placement": {"gpuProducts": [L40S.product], "nvlink": {"mode": "Ignored"}},
        },
        "Fits",
        {L40S.product},
    ),
    "a pair on cards without": (
        {"parallelism": {"tensor": 2}, "placement": {"gpuProducts": [L40S.product]}},
        "NoNVLinkNodes",
        set(),
    ),
    "large GPUs": ({"placement": {"minGpuMemory": "100Gi"}}, "Fits", {H200_SXM.product}),
    "larger GPUs than there are": (
        {"placement": {"minGpuMemory": "200Gi"}},
        "VRAMTooSmall",
        set(),
    ),
    # The size of a model is an estimate, which warns and holds nothing back.
    "a model too large": ({"model": {"source": "hf://x/405B"}}, "VRAMTooSmall", ANY),
    "nodes that nobody has": (
        {"placement": {"nodeSelector": {"rack": "none"}}},
        "NoEligibleNodes",
        set(),
    ),
    "sixteen GPUs of one node": (
        {"parallelism": {"tensor": 16}},
        "NotEnoughFreeGPUs",
        set(),
    ),
}


@pytest.mark.parametrize("case", PLACEMENTS)
async def test_pods_go_where_they_may_and_the_reason_is_right(
    case: str, prepared: LocalCluster, placement: str, api: KubeApi
) -> None:
    spec, reason, products = PLACEMENTS[case]
    name = case.replace(" ", "-").lower()
    await api.create(DEPLOYMENTS, llm(name, placement, **spec))

    async def verdict() -> str:
        live = await api.get(DEPLOYMENTS, placement, name)
        conditions = live.get("status", {}).get("conditions", ())
        return next((c["reason"] for c in conditions if c["type"] == "CapacityAvailable"), "")

    assert await eventually("a verdict", verdict) == reason
    selector = f"quire.dev/deployment={name},app.kubernetes.io/component=engine"

    async def node() -> str:
        page = await api.list_page(PODS, placement, selector=selector)
        return "".join(pod["spec"].get("nodeName", "") for pod in page["items"])

    if products:
        labels = prepared.get("node", await eventually("a node", node))["metadata"]["labels"]
        assert labels[PRODUCT] in products
    else:
        await asyncio.sleep(2.0)
        assert await node() == ""


@pytest.fixture(scope="module")
def placement(prepared: LocalCluster) -> Iterator[str]:
    """A namespace, and an operator that serves no other."""
    prepared.kubectl("create", "namespace", "placement")
    with operator_process(prepared.kubeconfig, *FLAGS, "--watch-namespaces=placement"):
        yield "placement"
        prepared.kubectl("delete", "llmd", "--all", "--namespace=placement")


@pytest.fixture
async def api(prepared: LocalCluster) -> AsyncIterator[KubeApi]:
    async with api_client(prepared.kubeconfig) as client:
        yield client


async def test_many_deployments_cost_one_write_per_object_and_few_reports(
    prepared: LocalCluster, figure: Callable[[str, str], None]
) -> None:
    with operator_process(prepared.kubeconfig, *FLAGS) as operator:
        async with api_client(prepared.kubeconfig) as api:
            before, nodes_before = operator.writes(), _ready_since(prepared)
            cpu_before, began_at, started_at = cpu_milliseconds(), time.time(), time.monotonic()
            await _create(api, NUM_DEPLOYMENTS)
            created_s = time.monotonic() - started_at
            course = await _follow(operator, started_at)
            writes = operator.writes() - before
            children = await _children(api)
            idle_before = operator.writes()
            await asyncio.sleep(IDLE_S)
            idle = operator.writes() - idle_before

    objects = Counter({kind: len(found) for kind, found in children.items()})
    applied = _applied(writes)
    reports = _num_reports(writes)
    size = f"{NUM_NODES} nodes, {NUM_DEPLOYMENTS} deployments"
    figure(f"{size}: created in", f"{created_s:.1f} s")
    applied_s = _newest(children) - began_at
    figure(f"{size}: all {objects.total()} objects applied after", f"{applied_s:.0f} s")
    figure(f"{size}: CPU until then", _told(course.applied_cpu_ms - cpu_before))
    figure(f"{size}: no more writes after", f"{course.quiet_s:.1f} s")
    figure(f"{size}: writes per object", f"{applied.total() / objects.total():.3f}")
    figure(f"{size}: reports per deployment", f"{reports / NUM_DEPLOYMENTS:.2f}")
    figure(f"{size}: events per deployment", f"{writes['create', 'Event'] / NUM_DEPLOYMENTS:.2f}")
    figure(f"{size}: writes in {IDLE_S:.0f} idle seconds", str(idle.total()))
    assert applied == objects
    if _ready_since(prepared) != nodes_before:
        pytest.skip("simulated nodes were lost on a busy machine, which is news to report")
    # The first look and Ready, and a third where controllers are slow to bring all pods up.
    assert reports <= 3 * NUM_DEPLOYMENTS
    assert idle.total() == 0


def _ready_since(cluster: LocalCluster) -> dict[str, str]:
    """Return since when each node has been Ready, or not."""
    return {
        node["metadata"]["name"]: condition["lastTransitionTime"]
        for node in cluster.items("node")
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    }


def _has_not_ready_taint(node: Manifest) -> bool:
    taints = node["spec"].get("taints") or ()
    return any(taint["key"] == "node.kubernetes.io/not-ready" for taint in taints)


def _newest(children: dict[str, list[Manifest]]) -> float:
    """Return when the last object was there, which the server notes to the second."""
    made_at = [item["metadata"]["creationTimestamp"] for kind in children.values() for item in kind]
    return datetime.fromisoformat(max(made_at)).timestamp() + 1.0


def _told(cpu_ms: Counter[str]) -> str:
    return ", ".join(f"{name} {used / 1000:.1f} s" for name, used in cpu_ms.most_common(6))


async def _create(api: KubeApi, num_deployments: int) -> None:
    gate = asyncio.Semaphore(16)

    async def create(index: int) -> None:
        async with gate:
            await api.create(DEPLOYMENTS, llm(f"llm-{index:04d}", "default"))

    await asyncio.gather(*(create(index) for index in range(num_deployments)))


async def _children(api: KubeApi) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = {}
    for resource in BUILT_IN_CHILDREN:
        page = await api.list_page(
            resource, "default", selector="quire.dev/deployment", limit=100_000
        )
        if page["items"]:
            found[resource.kind] = page["items"]
    return found


@dataclass(slots=True)
class _Course:
    """How the writes went."""

    applied_cpu_ms: Counter[str] = field(default_factory=Counter)
    """What each program had computed when the last object was applied."""
    quiet_s: float = 0.0
    """When the last write of any kind was, in seconds since the first deployment was created."""


async def _follow(operator: OperatorProcess, started_at: float) -> _Course:
    """Watch the writes until every deployment was reported on, and nothing followed for a while."""
    course, writes, now_s = _Course(), operator.writes(), 0.0
    while _num_reports(writes) < NUM_DEPLOYMENTS or now_s < course.quiet_s + QUIET_S:
        await asyncio.sleep(POLL_S)
        found, now_s = operator.writes(), time.monotonic() - started_at
        if found != writes:
            course.quiet_s = now_s
        if _applied(found) != _applied(writes):
            course.applied_cpu_ms = cpu_milliseconds()
        writes = found
    return course


def _num_reports(writes: Counter[tuple[str, str]]) -> int:
    return writes["status", "LLMDeployment"]


def _applied(writes: Counter[tuple[str, str]]) -> Counter[str]:
    return Counter({kind: number for (verb, kind), number in writes.items() if verb == "apply"})
