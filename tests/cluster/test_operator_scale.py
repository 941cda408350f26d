"""Many deployments on many simulated nodes: how long, how many writes, and silence afterwards.

The size is small by default. The full one is a command:

    QUIRE_SCALE=200x1000 .venv/bin/pytest tests/cluster/test_operator_scale.py
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from local_cluster.cluster import LocalCluster
from local_cluster.gpu_nodes import H100_SXM, H200_SXM, L40S, SimulatedNode
from operator_process import OperatorProcess, operator_process
from operator_runs import api_client, llm
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(3000)]

CRDS = Path(__file__).parents[2] / "crds"
NUM_NODES, NUM_DEPLOYMENTS = map(int, os.environ.get("QUIRE_SCALE", "20x40").split("x"))
FLAGS = ("--no-leader-election", "--log-level=warning")
QUIET_S = 10.0
IDLE_S = 30.0


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
    control_plane.kubectl(
        "wait", "node", "--selector=type=kwok", "--for=condition=Ready", "--timeout=300s"
    )
    return control_plane


async def test_many_deployments_cost_one_write_per_object_and_few_reports(
    prepared: LocalCluster, figure: Callable[[str, str], None]
) -> None:
    with operator_process(prepared.kubeconfig, *FLAGS) as operator:
        async with api_client(prepared.kubeconfig) as api:
            before, nodes_before = operator.writes(), _ready_since(prepared)
            started_at = time.monotonic()
            await _create(api, NUM_DEPLOYMENTS)
            created_s = time.monotonic() - started_at
            course = await _follow(operator, started_at)
            writes = operator.writes() - before
            objects = Counter({kind: len(found) for kind, found in (await _children(api)).items()})
            idle_before = operator.writes()
            await asyncio.sleep(IDLE_S)
            idle = operator.writes() - idle_before

    applied = _applied(writes)
    reports = _num_reports(writes)
    size = f"{NUM_NODES} nodes, {NUM_DEPLOYMENTS} deployments"
    figure(f"{size}: created in", f"{created_s:.1f} s")
    figure(f"{size}: all {objects.total()} objects applied after", f"{course.applied_s:.1f} s")
    figure(f"{size}: the operator's CPU until then", f"{course.applied_cpu_s:.1f} s")
    figure(f"{size}: no more writes after", f"{course.quiet_s:.1f} s")
    figure(f"{size}: writes per object", f"{applied.total() / objects.total():.3f}")
    figure(f"{size}: reports per deployment", f"{reports / NUM_DEPLOYMENTS:.2f}")
    figure(f"{size}: events per deployment", f"{writes['create', 'Event'] / NUM_DEPLOYMENTS:.2f}")
    figure(f"{size}: writes in {IDLE_S:.0f} idle seconds", str(idle.total()))
    assert applied == objects
    if _ready_since(prepared) != nodes_before:
        pytest.skip("simulated nodes were lost on a busy machine, which is news to report")
    # The first look, Ready, and what came up after Ready; two where all pods start together.
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
    """How the writes went; times in seconds since the first deployment was created."""

    applied_s: float = 0.0
    """When the last object was applied."""
    applied_cpu_s: float = 0.0
    """What the operator had computed by then."""
    quiet_s: float = 0.0
    """When the last write of any kind was."""


async def _follow(operator: OperatorProcess, started_at: float) -> _Course:
    """Watch the writes until every deployment was reported on, and nothing followed for a while."""
    course, writes, now_s = _Course(), operator.writes(), 0.0
    while _num_reports(writes) < NUM_DEPLOYMENTS or now_s < course.quiet_s + QUIET_S:
        await asyncio.sleep(0.5)
        found, now_s = operator.writes(), time.monotonic() - started_at
        if found != writes:
            course.quiet_s = now_s
        if _applied(found) != _applied(writes):
            course.applied_s, course.applied_cpu_s = now_s, operator.cpu_s()
        writes = found
    return course


def _num_reports(writes: Counter[tuple[str, str]]) -> int:
    return writes["status", "LLMDeployment"]


def _applied(writes: Counter[tuple[str, str]]) -> Counter[str]:
    return Counter({kind: number for (verb, kind), number in writes.items() if verb == "apply"})
