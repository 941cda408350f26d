"""The router's discovery against a real API server: what it may ask, and what it makes of it.

Pods are simulated; engines and the router are processes in the cluster's network.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from local_cluster.addresses import API_PORT, CONTROL_IP
from local_cluster.cluster import LocalCluster
from pool_support import PATIENCE_S, eventually
from quire_router.discovery_status import DiscoveryStatus
from quire_router.endpoint_slices import ServiceName
from quire_router.kubernetes_api import ApiServerError, InCluster, KubernetesApi
from quire_router.kubernetes_discovery import KubernetesDiscovery

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
LABELS = {"app": "engine"}
FIRST_PORT = 51000


@pytest.fixture
def tenant(control_plane: LocalCluster) -> Iterator[str]:
    name = f"discovery-{time.monotonic_ns() % 10**9}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def account(control_plane: LocalCluster, tenant: str, tmp_path: Path) -> Path:
    """The folder that a router's pod would have, with the rights that its Role gives."""
    rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]}]
    rules[0]["verbs"] = ["list", "watch"]
    subject = {"kind": "ServiceAccount", "name": "router", "namespace": tenant}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"}
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "router"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "router"},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "router"},
            "roleRef": reference,
            "subjects": [subject],
        },
        namespace=tenant,
    )
    config = json.loads(control_plane.kubeconfig.read_text())
    authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(authority))
    token = control_plane.kubectl("create", "token", "router", f"--namespace={tenant}")
    (tmp_path / "token").write_text(token)
    (tmp_path / "namespace").write_text(tenant)
    return tmp_path


@pytest.fixture
def api(control_plane: LocalCluster, account: Path) -> KubernetesApi:
    config = json.loads(control_plane.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]["server"]
    return KubernetesApi(InCluster(base_url=server, directory=account))


@asynccontextmanager
async def following(api: KubernetesApi) -> AsyncIterator[tuple[DiscoveryStatus, set[str]]]:
    """Yield the status and the targets, which stay up to date."""
    status, now = DiscoveryStatus(source="kubernetes:///engines"), set[str]()
    discovery = KubernetesDiscovery(ServiceName.parse("engines:grpc"), api, status)

    async def follow() -> None:
        async for targets in discovery.watch():
            now.clear()
            now.update(targets)

    task = asyncio.create_task(follow())
    try:
        yield status, now
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def engines_service(**spec: Any) -> dict[str, Any]:
    port = {"name": "grpc", "port": 50051, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "engines"},
        "spec": {"clusterIP": "None", "ports": [port], **spec},
    }


def pod_at(number: int) -> dict[str, Any]:
    """A pod on a node without a kubelet: it is what the test says, and ends when it says so."""
    container = {"name": "engine", "image": "nowhere.test/engine:1"}
    spec = {
        "containers": [container],
        "serviceAccountName": "router",
        "nodeName": "ghost",
        "terminationGracePeriodSeconds": 300,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"engine-{number}", "labels": LABELS},
        "spec": spec,
    }


@pytest.fixture
def ghost(control_plane: LocalCluster) -> Iterator[None]:
    """A node that nothing stands behind; the controller wants to know where pods are."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}}
    control_plane.apply(node)
    yield
    control_plane.kubectl("delete", "node", "ghost")


def set_ready(cluster: LocalCluster, namespace: str, number: int, *, is_ready: bool) -> None:
    address = f"198.19.9.{number}"
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": str(is_ready)}],
    }
    patch = json.dumps({"status": status})
    options = [f"--namespace={namespace}", "--subresource=status", "--patch", patch]
    cluster.kubectl("patch", "pod", f"engine-{number}", *options)


def targets(*numbers: int) -> set[str]:
    return {f"198.19.9.{number}:50051" for number in numbers}


@pytest.mark.usefixtures("ghost")
@pytest.mark.parametrize("publishes", [False, True], ids=["ready only", "publishes all"])
async def test_pods_come_and_go_and_terminating_ones_are_dropped_before_they_end(
    control_plane: LocalCluster, tenant: str, api: KubernetesApi, publishes: bool
) -> None:
    service = engines_service(selector=LABELS, publishNotReadyAddresses=publishes)
    async with following(api) as (status, now):
        await eventually(lambda: status.heard_at is not None)
        control_plane.apply(service, *map(pod_at, (1, 2, 3)), namespace=tenant)
        for number in (1, 2, 3):
            set_ready(control_plane, tenant, number, is_ready=number < 3)
        await eventually(lambda: now == targets(1, 2))
        pods = {target: endpoint.pod for target, endpoint in status.endpoints.items()}
        assert pods == {"198.19.9.1:50051": "engine-1", "198.19.9.2:50051": "engine-2"}

        control_plane.kubectl("delete", "pod/engine-1", f"--namespace={tenant}", "--wait=false")
        await eventually(lambda: now == targets(2))
        leaving = control_plane.get("pod", "engine-1", namespace=tenant)
        assert leaving["metadata"]["deletionTimestamp"]
        assert status.num_endpoints == {"ready": 1, "not_ready": 1, "terminating": 1}

        set_ready(control_plane, tenant, 3, is_ready=True)
        await eventually(lambda: now == targets(2, 3))
        set_ready(control_plane, tenant, 2, is_ready=False)
        await eventually(lambda: now == targets(3))
        force = ["--force", "--grace-period=0", f"--namespace={tenant}"]
        control_plane.kubectl("delete", "pod", "--all", *force)
        await eventually(lambda: now == set())


async def test_other_namespaces_are_closed_and_the_message_says_why(api: KubernetesApi) -> None:
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

    with pytest.raises(ApiServerError, match=r"cannot list resource .*; .* needs list") as caught:
        await api.list(path, label_selector="a=b")

    assert caught.value.reason == "forbidden"


async def test_an_api_server_that_is_gone_changes_nothing_and_is_caught_up_with(
    control_plane: LocalCluster, tenant: str, api: KubernetesApi
) -> None:
    control_plane.apply(
        engines_service(), slice_with("one", 50051, address="198.19.9.1"), namespace=tenant
    )
    async with following(api) as (status, now):
        await eventually(lambda: now == {"198.19.9.1:50051"})

        await asyncio.to_thread(control_plane.stop_api_server)
        await eventually(lambda: sum(status.failures.values()) >= 2)
        assert now == {"198.19.9.1:50051"}
        assert status.age_s > 0.1
        await asyncio.to_thread(control_plane.start_api_server)
        moved = slice_with("one", 50051, address="198.19.9.2")
        await asyncio.to_thread(control_plane.apply, moved, namespace=tenant)

        await eventually(lambda: now == {"198.19.9.2:50051"})

    path = f"/apis/discovery.k8s.io/v1/namespaces/{tenant}/endpointslices"
    with pytest.raises(ApiServerError, match="too old") as caught:
        async for _ in api.watch(path, label_selector="a=b", resource_version="1"):
            pass
    assert caught.value.reason == "expired"


def slice_with(
    name: str, port: int, *, address: str = CONTROL_IP, terminating: bool = False
) -> dict[str, Any]:
    conditions = {"ready": not terminating, "serving": True, "terminating": terminating}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "engines"}},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": conditions}],
    }


class Network:
    """Programs in the cluster's network, ended with the test."""

    def __init__(self, cluster: LocalCluster, folder: Path, stack: ExitStack) -> None:
        self._cluster = cluster
        self._folder = folder
        self._stack = stack

    def run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a Python module; its output goes to a file of that name."""
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}/engine:{ROOT}/router",
            "KUBERNETES_SERVICE_HOST": CONTROL_IP,
            "KUBERNETES_SERVICE_PORT": str(API_PORT),
        }
        out = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            self._cluster.inside(sys.executable, "-m", *command),
            stdout=out,
            stderr=out,
            env=environment,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def engine(self, port: int) -> subprocess.Popen[bytes]:
        flags = ["--host", CONTROL_IP, "--port", str(port), "--metrics-port", "-1"]
        return self.run(f"engine-{port}", "quire_engine.testing", "--decode-ms", "5", *flags)

    def tunnel(self, port: int) -> str:
        return self._stack.enter_context(self._cluster.tunnel_to(CONTROL_IP, port))


@pytest.fixture
def network(control_plane: LocalCluster, tmp_path: Path) -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(control_plane, tmp_path, stack)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def metric(url: str, start: str) -> float:
    """Sum of the samples that begin so; 0 if there is none."""
    lines = get(f"{url}/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


async def answers(url: str, path: str, status: int, *, within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while (await asyncio.to_thread(get, url + path))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_traffic_follows_the_slices_and_outlives_the_api_server(
    control_plane: LocalCluster, tenant: str, account: Path, network: Network
) -> None:
    old, new = FIRST_PORT, FIRST_PORT + 1
    service = f"kubernetes:///engines.{tenant}:grpc"
    flags = ["--host", CONTROL_IP, "--port", "51080", "--service-account-dir", str(account)]
    network.run("router", "quire.cli", "router", "--replicas", service, *flags)
    network.engine(old)
    network.engine(new)
    url = f"http://{network.tunnel(51080)}"
    await answers(url, "/readyz", 200)
    assert get(f"{url}/ready")[0] == 503

    await apply(control_plane, tenant, engines_service(), *slices(old))
    await answers(url, "/ready", 200)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        begun = await client.completions.create(**question(4000), stream=True)
        await anext(begun)
        await apply(control_plane, tenant, *slices(old, terminating=True), *slices(new))
        up = f'quire_router_replica_up{{replica="{CONTROL_IP}:{new}"}}'
        await until(lambda: metric(url, up) == 1)
        before = metric(url, sent_to(old))

        for _ in range(20):
            await client.completions.create(**question(4))

        assert metric(url, sent_to(old)) == before == 1
        assert metric(url, sent_to(new)) == 20
        assert metric(url, in_flight_on(old)) == 1
        reasons = [chunk.choices[0].finish_reason async for chunk in begun]
        assert reasons[-1] == "length"
        await until(lambda: "replica_up" in metrics_of(url) and str(old) not in metrics_of(url))

        await asyncio.to_thread(control_plane.stop_api_server)
        age = "quire_router_discovery_age_seconds"
        await until(lambda: metric(url, age) > 2)
        for _ in range(20):
            await client.completions.create(**question(4))
        await asyncio.to_thread(control_plane.start_api_server)
        await apply(control_plane, tenant, *slices(old), *slices(new, terminating=True))
        await until(lambda: metric(url, sent_to(old)) == 0 and f":{old}" in metrics_of(url))
        await client.completions.create(**question(4))
        await until(lambda: metric(url, sent_to(old)) == 1)


def question(max_tokens: int) -> dict[str, Any]:
    body = {"model": "fake", "prompt": "hi", "max_tokens": max_tokens}
    return {**body, "extra_body": {"ignore_eos": True}}


def sent_to(port: int) -> str:
    return f'quire_router_replica_requests_total{{replica="{CONTROL_IP}:{port}"}}'


def in_flight_on(port: int) -> str:
    return f'quire_router_replica_in_flight{{replica="{CONTROL_IP}:{port}"}}'


def metrics_of(url: str) -> str:
    return get(f"{url}/metrics")[1]


def slices(*ports: int, terminating: bool = False) -> list[dict[str, Any]]:
    return [slice_with(f"engine-{port}", port, terminating=terminating) for port in ports]


async def apply(cluster: LocalCluster, namespace: str, *objects: dict[str, Any]) -> None:
    await asyncio.to_thread(cluster.apply, *objects, namespace=namespace)


async def until(is_true: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(is_true):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
