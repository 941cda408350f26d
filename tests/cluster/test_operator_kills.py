"""The operator killed at every write of a create, a rollout, a pruning change and a delete.

One run for each write and each side of it: the operator is cut off before the server hears of the
write, or after it acted and before the answer came. Another operator then finds what is there. It
must end where an undisturbed one ends, without a pod started twice or a change made twice.
"""

import asyncio
import contextlib
import gc
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from local_cluster.cluster import LocalCluster
from operator_runs import Fate, api_client, eventually, llm, operating
from quire_operator.errors import KubeError, NotFoundError
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS, PODS, Resource

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    # A killed operator leaves its connections as they are.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CRDS = Path(__file__).parents[2] / "crds"
AT_A_TIME = 4
LIMIT_S = 240
QUIET_S = 6.0
"""Longer than the time between two reports of progress."""
NAME = "llm"
POD_READY = {
    "status": {
        "phase": "Running",
        "conditions": [{"type": type_, "status": "True"} for type_ in ("Ready", "ContainersReady")],
    }
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A change to a deployment, and what it may do to the cluster."""

    name: str
    patch: Manifest | None
    """Merge patch to the spec of a deployment that is Ready; None: it is created."""
    num_pod_starts: int
    """How many pods it takes, no more and no less."""


SCENARIOS = [
    Scenario("create", None, num_pod_starts=4),
    Scenario("rollout", {"engine": {"image": "example.test/engine:2"}}, num_pod_starts=2),
    Scenario("prune", {"replicas": 1, "networkPolicy": {"enabled": False}}, num_pod_starts=0),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Let what killed operators left warn here, where it is expected, and not in other tests."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def prepared(control_plane: LocalCluster) -> LocalCluster:
    for crd in CRDS.glob("*.yaml"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    return control_plane


@pytest.fixture
async def api(prepared: LocalCluster) -> AsyncIterator[KubeApi]:
    async with api_client(prepared.kubeconfig) as client:
        yield client


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_killed_at_any_write_it_ends_where_it_would_have_ended(
    scenario: Scenario,
    prepared: LocalCluster,
    api: KubeApi,
    figure: Callable[[str, str], None],
) -> None:
    undisturbed = await _run(prepared, api, scenario, Fate())
    num_writes = len(undisturbed.writes)
    assert num_writes >= 2
    gate = asyncio.Semaphore(AT_A_TIME)

    async def killed(at_write: int, *, is_after: bool) -> _End:
        async with gate:
            return await _run(prepared, api, scenario, Fate(at_write, is_after))

    ends = await asyncio.gather(
        *(
            killed(at_write, is_after=is_after)
            for at_write in range(1, num_writes + 1)
            for is_after in (False, True)
        )
    )

    figure(f"{scenario.name}: writes", f"{num_writes}; operators killed: {len(ends)}")
    for end in (undisturbed, *ends):
        assert end.children == undisturbed.children, end.kill
        assert end.num_pod_starts == scenario.num_pod_starts, end.kill
        assert end.generation == undisturbed.generation, end.kill


async def test_a_delete_needs_no_write_and_leaves_nothing(
    prepared: LocalCluster, api: KubeApi
) -> None:
    namespace = _new_namespace(prepared)
    fate = Fate()
    async with (
        _pods(api, namespace),
        operating(prepared.kubeconfig, fate=fate, watch_namespaces=(namespace,)),
    ):
        await _create(api, namespace)
        await _ready(api, namespace)
        num_writes = len(fate.writes)

        prepared.kubectl("delete", "llmd", NAME, f"--namespace={namespace}")

        await eventually("nothing is left", lambda: _is_empty(api, namespace), limit_s=LIMIT_S)
    assert [write for write in fate.writes[num_writes:] if "/events" not in write] == []


async def test_a_delete_finishes_without_any_operator(prepared: LocalCluster, api: KubeApi) -> None:
    namespace = _new_namespace(prepared)
    async with _pods(api, namespace):
        async with operating(prepared.kubeconfig, watch_namespaces=(namespace,)):
            await _create(api, namespace)
            await _ready(api, namespace)

        prepared.kubectl("delete", "llmd", NAME, f"--namespace={namespace}")

        await eventually("nothing is left", lambda: _is_empty(api, namespace), limit_s=LIMIT_S)


@dataclass(frozen=True, slots=True)
class _End:
    kill: str
    writes: list[str]
    children: list[tuple[str, str]]
    num_pod_starts: int
    generation: int
    """Of the engines' StatefulSet: how often its spec was changed."""


async def _run(cluster: LocalCluster, api: KubeApi, scenario: Scenario, fate: Fate) -> _End:
    """Carry a scenario out in its own namespace, by an operator of this fate and a second one."""
    namespace = _new_namespace(cluster)
    options: dict[str, Any] = {"watch_namespaces": (namespace,)}
    async with _pods(api, namespace) as pods:
        if scenario.patch is not None:
            async with operating(cluster.kubeconfig, **options):
                await _create(api, namespace)
                await _ready(api, namespace)
        num_before = len(pods.started)
        async with operating(cluster.kubeconfig, fate=fate, **options):
            if scenario.patch is None:
                await _create(api, namespace)
            else:
                await api.merge(DEPLOYMENTS, namespace, NAME, {"spec": scenario.patch})
            await _end_of_life(api, namespace, fate)
        async with operating(cluster.kubeconfig, **options):
            await _ready(api, namespace)
        side = "after" if fate.is_after else "before"
        end = _End(
            f"{scenario.name}, killed {side} write {fate.at_write}: {fate.writes[-1:]}",
            fate.writes,
            await _children(api, namespace),
            len(pods.started) - num_before,
            await _generation(api, namespace),
        )
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    return end


async def _end_of_life(api: KubeApi, namespace: str, fate: Fate) -> None:
    """Wait until the operator died, or has nothing left to write: reports differ in number."""

    async def be_done() -> None:
        await _ready(api, namespace)
        num_writes = -1
        while num_writes != len(fate.writes):
            num_writes = len(fate.writes)
            await asyncio.sleep(QUIET_S)

    ways = [asyncio.create_task(fate.died.wait()), asyncio.create_task(be_done())]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        if way.done():
            way.result()
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)


@dataclass(slots=True)
class _Kubelet:
    """Makes every pod of a namespace Ready at once, and remembers all that ever were."""

    api: KubeApi
    namespace: str
    started: set[str] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(KubeError):
                for pod in await _list(self.api, PODS, self.namespace):
                    self.started.add(pod["metadata"]["uid"])
                    if pod.get("status", {}).get("phase") != "Running":
                        name = pod["metadata"]["name"]
                        await self.api.patch_status(PODS, self.namespace, name, POD_READY)
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _pods(api: KubeApi, namespace: str) -> AsyncIterator[_Kubelet]:
    kubelet = _Kubelet(api, namespace)
    task = asyncio.create_task(kubelet.run())
    try:
        yield kubelet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _new_namespace(cluster: LocalCluster) -> str:
    name = f"kill-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.wait("serviceaccount/default", "create", namespace=name)
    return name


async def _create(api: KubeApi, namespace: str) -> None:
    await api.create(DEPLOYMENTS, llm(NAME, namespace, replicas=2, engine={"image": "e.test/e:1"}))


async def _ready(api: KubeApi, namespace: str) -> None:
    async def is_ready() -> bool:
        live = await api.get(DEPLOYMENTS, namespace, NAME)
        status = live.get("status") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or ()}
        ready = conditions.get("Ready") or {}
        return (
            status.get("observedGeneration") == live["metadata"]["generation"]
            and ready.get("status") == "True"
            and status.get("updatedReplicas") == live["spec"]["replicas"]
        )

    try:
        await eventually(f"{namespace} is Ready", is_ready, limit_s=LIMIT_S)
    except AssertionError:
        live = await api.get(DEPLOYMENTS, namespace, NAME)
        raise AssertionError(f"not Ready: {live.get('status')}") from None


async def _list(api: KubeApi, resource: Resource, namespace: str) -> list[Manifest]:
    page = await api.list_page(resource, namespace, selector="quire.dev/deployment")
    return list(page["items"])


async def _children(api: KubeApi, namespace: str) -> list[tuple[str, str]]:
    found = [
        (resource.kind, item["metadata"]["name"])
        for resource in BUILT_IN_CHILDREN
        for item in await _list(api, resource, namespace)
    ]
    assert max(Counter(found).values()) == 1
    return sorted(found)


async def _is_empty(api: KubeApi, namespace: str) -> bool:
    for resource in (*BUILT_IN_CHILDREN, PODS):
        if await _list(api, resource, namespace):
            return False
    try:
        await api.get(DEPLOYMENTS, namespace, NAME)
    except NotFoundError:
        return True
    return False


async def _generation(api: KubeApi, namespace: str) -> int:
    sets = [item for item in BUILT_IN_CHILDREN if item.kind == "StatefulSet"]
    live = await _list(api, sets[0], namespace)
    return max(int(item["metadata"]["generation"]) for item in live)
