"""Rollouts and placement as real controllers and a real scheduler carry them out."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from local_cluster.cluster import LocalCluster
from local_cluster.gpu_nodes import GB200, H100_SXM, L40S, SimulatedNode
from operator_runs import eventually, llm, operating
from quire_operator.plan import Manifest, OperatorSettings
from quire_operator.runtime.process import Process

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

CRDS = Path(__file__).parents[2] / "crds"
NVLINK_NODES = ("sxm-0", "sxm-1")
CLIQUES = {"rack-a": ("gb-0", "gb-1"), "rack-b": ("gb-2", "gb-3")}
REVISION = "controller-revision-hash"


@pytest.fixture(scope="module")
def prepared(control_plane: LocalCluster) -> Iterator[LocalCluster]:
    """Nodes with NVLink, nodes without, two racks of multi-node NVLink, and one without GPUs."""
    for crd in CRDS.glob("*.yaml"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    nodes = [
        *(SimulatedNode(name=name, gpu=H100_SXM) for name in NVLINK_NODES),
        *(SimulatedNode(name=f"pcie-{index}", gpu=L40S) for index in range(2)),
        *(
            SimulatedNode(
                name=name, gpu=GB200, num_gpus=4, labels={"nvidia.com/gpu.clique": clique}
            )
            for clique, names in CLIQUES.items()
            for name in names
        ),
        SimulatedNode(name="cpu-0", gpu=None),
    ]
    control_plane.add_simulated_nodes(nodes)
    yield control_plane
    control_plane.remove_simulated_nodes()


@pytest.fixture
async def operator(prepared: LocalCluster) -> AsyncIterator[Process]:
    settings = OperatorSettings(pipeline_parallelism=True)
    async with operating(prepared.kubeconfig, settings=settings) as process:
        yield process


class World:
    """One deployment in a namespace of its own."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.namespace = f"test-{secrets.token_hex(4)}"

    async def kubectl(self, *arguments: str) -> str:
        options = (*arguments, f"--namespace={self.namespace}")
        return await asyncio.to_thread(self.cluster.kubectl, *options)

    async def create(self, **spec: Any) -> None:
        await self.kubectl("create", "namespace", self.namespace)
        item = llm("demo", self.namespace, **spec)
        await asyncio.to_thread(self.cluster.apply, item, namespace=self.namespace)

    async def change(self, patch: str) -> None:
        await self.kubectl("patch", "llmd", "demo", "--type=merge", "--patch", patch)

    async def deployment(self) -> Manifest:
        return await asyncio.to_thread(self.cluster.get, "llmd", "demo", namespace=self.namespace)

    async def pods(self) -> dict[str, Manifest]:
        found = await asyncio.to_thread(
            self.cluster.items,
            "pods",
            namespace=self.namespace,
            selector="app.kubernetes.io/component=engine",
        )
        return {pod["metadata"]["name"]: pod for pod in found}

    async def has_changed(self, before: dict[str, Manifest], num_changed: int) -> bool:
        """Tell whether so many pods are others than before, and serve."""
        pods = await self.pods()
        return num_changed == sum(
            is_serving(pod) and uid(pod) != uid(before[name]) for name, pod in pods.items()
        )

    async def is_empty(self) -> bool:
        """Tell whether no pod of the deployment is left, routers included."""
        return not await self.kubectl("get", "pods", "--output=name")

    async def objects(self) -> set[str]:
        """Name what the operator keeps, budgets aside, which are for two pods and more."""
        kinds = "statefulset,deployment,service,serviceaccount,role,rolebinding,networkpolicy"
        found = await self.kubectl(
            *("get", kinds, "--selector=quire.dev/deployment=demo", "--output=name")
        )
        return set(found.split())

    async def revisions(self) -> dict[str, str]:
        return {n: p["metadata"]["labels"][REVISION] for n, p in (await self.pods()).items()}

    async def is_ready(self) -> bool:
        """Tell whether the newest spec is served by every replica."""
        live = await self.deployment()
        status = live.get("status", {})
        return bool(
            status.get("observedGeneration") == live["metadata"]["generation"]
            and status.get("phase") == "Ready"
        )

    async def until_ready(self) -> None:
        try:
            await eventually("ready", self.is_ready, limit_s=240)
        except AssertionError:
            raise AssertionError(await self.deployment()) from None


@pytest.fixture
async def world(prepared: LocalCluster, operator: Process) -> AsyncIterator[World]:
    made = World(prepared)
    yield made
    await made.kubectl("delete", "namespace", made.namespace, "--wait=false")


def uid(pod: Manifest) -> str:
    return str(pod["metadata"]["uid"])


def is_serving(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return is_ready and "deletionTimestamp" not in pod["metadata"]


async def test_a_rollout_replaces_each_pod_once_within_its_budget(world: World) -> None:
    await world.create(replicas=4, rollout={"maxUnavailable": 2}, drain={"preStopSeconds": 0})
    await world.until_ready()
    uids = {pod["metadata"]["uid"] for pod in (await world.pods()).values()}
    seen, fewest = set(uids), 4

    await world.change('{"spec": {"engine": {"image": "example.test/engine:2"}}}')
    while not await world.is_ready():
        pods = await world.pods()
        seen |= {pod["metadata"]["uid"] for pod in pods.values()}
        fewest = min(fewest, sum(map(is_serving, pods.values())))

    assert fewest >= 2
    seen |= {pod["metadata"]["uid"] for pod in (await world.pods()).values()}
    assert len(seen) == 8
    assert len(set((await world.revisions()).values())) == 1


async def test_tensor_parallel_replicas_go_to_nvlink_nodes_alone(world: World) -> None:
    await world.create(replicas=2, parallelism={"tensor": 8}, drain={"preStopSeconds": 0})

    await world.until_ready()

    nodes = {pod["spec"]["nodeName"] for pod in (await world.pods()).values()}
    assert nodes == set(NVLINK_NODES)


async def test_what_does_not_fit_is_explained(world: World) -> None:
    await world.create(
        replicas=1,
        parallelism={"tensor": 8},
        placement={"gpuProducts": ["NVIDIA-L40S"]},
    )

    async def reason() -> str:
        status = (await world.deployment()).get("status", {})
        found = [c for c in status.get("conditions", ()) if c["type"] == "CapacityAvailable"]
        return f"{found[0]['reason']}: {found[0]['message']}" if found else ""

    text = await eventually("a reason", reason)

    assert text.startswith("NoNVLinkNodes")
    assert "pcie-0, pcie-1" in text


async def test_a_group_stays_in_one_nvlink_domain(world: World) -> None:
    await world.create(
        replicas=2,
        parallelism={"tensor": 8, "nodesPerReplica": 2},
        drain={"preStopSeconds": 0},
    )

    await world.until_ready()

    pods = await world.pods()
    racks = {
        frozenset(pods[f"demo-r{replica}-{index}"]["spec"]["nodeName"] for index in range(2))
        for replica in range(2)
    }
    assert racks == {frozenset(names) for names in CLIQUES.values()}


async def test_a_partition_keeps_the_replicas_below_it_as_they_are(world: World) -> None:
    await world.create(
        replicas=3, rollout={"partition": 2, "maxUnavailable": 2}, drain={"preStopSeconds": 0}
    )
    await world.until_ready()
    before = await world.pods()

    await world.change('{"spec": {"engine": {"image": "example.test/engine:2"}}}')
    await eventually("the last replica is new", partial(world.has_changed, before, 1))
    await world.until_ready()

    after = await world.pods()
    assert {name for name, pod in after.items() if uid(pod) == uid(before[name])} == {
        "demo-engine-0",
        "demo-engine-1",
    }
    images = {name: pod["spec"]["containers"][0]["image"] for name, pod in after.items()}
    assert [name for name, image in images.items() if image.endswith(":2")] == ["demo-engine-2"]

    await world.change('{"spec": {"rollout": {"partition": 0}}}')
    await eventually("all replicas are new", partial(world.has_changed, before, 3))
    await world.until_ready()
    assert len(set((await world.revisions()).values())) == 1
    assert uid((await world.pods())["demo-engine-2"]) == uid(after["demo-engine-2"])


async def test_a_suspended_deployment_runs_nothing_and_comes_back(world: World) -> None:
    await world.create(replicas=2, drain={"preStopSeconds": 0})
    await world.until_ready()
    objects = await world.objects()

    await world.change('{"spec": {"suspend": true}}')
    await eventually("no pod runs", world.is_empty, limit_s=240)

    assert await world.objects() == objects
    status = (await world.deployment())["status"]
    assert (status["phase"], status.get("readyReplicas", 0)) == ("Suspended", 0)

    await world.change('{"spec": {"suspend": false}}')
    await world.until_ready()
    assert len(await world.pods()) == 2
    assert await world.objects() == objects


async def test_a_paused_deployment_is_left_alone_until_it_goes_on(world: World) -> None:
    await world.create(replicas=1, drain={"preStopSeconds": 0})
    await world.until_ready()
    objects, before = await world.objects(), await world.pods()

    await world.kubectl("annotate", "llmd", "demo", "quire.dev/paused=true")
    await world.change('{"spec": {"engine": {"image": "example.test/engine:2"}}}')
    await world.kubectl("delete", "service", "demo")

    async def is_paused() -> bool:
        conditions = (await world.deployment())["status"]["conditions"]
        return any(
            c["type"] == "ReconciliationPaused" and c["status"] == "True" for c in conditions
        )

    await eventually("it says so", is_paused)
    await asyncio.sleep(3.0)
    assert await world.objects() == objects - {"service/demo"}
    assert {name: uid(pod) for name, pod in (await world.pods()).items()} == {
        name: uid(pod) for name, pod in before.items()
    }

    await world.kubectl("annotate", "llmd", "demo", "quire.dev/paused-")
    await eventually("the pod is new", partial(world.has_changed, before, 1), limit_s=240)
    await world.until_ready()
    assert await world.objects() == objects
