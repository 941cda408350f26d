"""What breaks in a cluster, while clients chat: they get their answers, and everything heals."""

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from local_cluster.cluster import LocalCluster
from local_cluster.errors import CommandError
from local_cluster.load import Load
from local_cluster.release import SAMPLES, Release

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "smollm2"
READY_LIMIT_S = 600
PROXY_WAIT_S = 60
NODE_GRACE_S = 50
"""How long the node controller waits for a silent node: kube-controller-manager's default."""


@pytest.fixture(scope="module")
def namespace(local_cluster: LocalCluster) -> Iterator[str]:
    local_cluster.kubectl("create", "namespace", "faults")
    yield "faults"
    local_cluster.kubectl("delete", "namespace", "faults", "--wait=false")


@pytest.fixture(scope="module")
def deployment(release: Release, local_cluster: LocalCluster, namespace: str) -> Iterator[str]:
    """Apply the first sample with two replicas, one on each node."""
    sample = yaml.safe_load((SAMPLES / "01-smollm2.yaml").read_text())
    sample["spec"]["replicas"] = 2
    # More than half a node, so that no node takes both.
    sample["spec"]["resources"]["cpu"] = "1100m"
    local_cluster.apply(sample, namespace=namespace)
    _wait_whole(local_cluster, namespace)
    yield NAME
    local_cluster.kubectl("delete", "llmd", NAME, f"--namespace={namespace}")


@pytest.fixture
def whole(local_cluster: LocalCluster, deployment: str, namespace: str) -> str:
    """The deployment, with nothing broken when the test begins."""
    _wait_whole(local_cluster, namespace)
    return deployment


def test_a_deleted_engine_pod_costs_no_answer(
    local_cluster: LocalCluster, whole: str, namespace: str, figure: Callable[[str, str], None]
) -> None:
    with _load(local_cluster, namespace) as load:
        pod = _pods(local_cluster, namespace, "engine")[0]["metadata"]
        _delete_pod(local_cluster, namespace, pod["name"], "--grace-period=30")
        took_s = _wait_replaced(local_cluster, namespace, pod)

    figure("engine pod deleted, whole again after", f"{took_s:.0f} s")
    assert load.failures == []


def test_a_killed_engine_pod_costs_no_answer(
    local_cluster: LocalCluster, whole: str, namespace: str, figure: Callable[[str, str], None]
) -> None:
    with _load(local_cluster, namespace) as load:
        pod = _pods(local_cluster, namespace, "engine")[1]["metadata"]
        _delete_pod(local_cluster, namespace, pod["name"], "--grace-period=0", "--force")
        took_s = _wait_replaced(local_cluster, namespace, pod)

    figure("engine pod killed, whole again after", f"{took_s:.0f} s")
    assert load.failures == []


def test_requests_flow_while_the_api_server_is_gone(
    local_cluster: LocalCluster, whole: str, namespace: str, figure: Callable[[str, str], None]
) -> None:
    with _load(local_cluster, namespace) as load:
        local_cluster.stop_api_server()
        before = load.num_answered()
        time.sleep(60)
        during = load.num_answered() - before
        local_cluster.start_api_server()
        _wait_whole(local_cluster, namespace)

    figure("answers while the API server was gone for 60 s", str(during))
    assert load.failures == []
    assert during > 0


def test_a_killed_leader_of_the_operator_is_replaced(
    release: Release,
    local_cluster: LocalCluster,
    whole: str,
    namespace: str,
    figure: Callable[[str, str], None],
) -> None:
    leader = _leader(release)
    force = ("--grace-period=0", "--force")

    with _load(local_cluster, namespace) as load:
        local_cluster.kubectl("delete", "pod", leader, f"--namespace={release.namespace}", *force)
        took_s = local_cluster.wait_until(
            "another pod leads", lambda: _leader(release) not in ("", leader)
        )
        # A new leader does the work: what somebody deleted comes back.
        local_cluster.kubectl("delete", "service", whole, f"--namespace={namespace}")
        local_cluster.wait_until(
            "the Service is back",
            lambda: _exists(local_cluster, "service", whole, namespace),
        )

    figure("operator's leader killed, another leads after", f"{took_s:.0f} s")
    outage = "the Service was away for a moment, on purpose"
    assert all("Connect" in failure.error for failure in load.failures), outage


def test_a_crashed_node_leaves_the_other_serving(
    local_cluster: LocalCluster, whole: str, namespace: str, figure: Callable[[str, str], None]
) -> None:
    # Clients come in over the first node; the second one is lost.
    lost = local_cluster.nodes[1]
    survivor = _router_on(local_cluster, namespace, local_cluster.nodes[0])

    with ExitStack() as stack:
        through_service = stack.enter_context(_load(local_cluster, namespace))
        address = stack.enter_context(local_cluster.tunnel_to(survivor, 8000))
        at_survivor = stack.enter_context(Load(address, whole, num_clients=1))
        local_cluster.wait_until("answers flow", lambda: at_survivor.num_answered() > 0)
        local_cluster.crash_node(lost)
        noticed_s = local_cluster.wait_until(
            "the node is known as lost",
            lambda: not _is_node_ready(local_cluster, lost),
            timeout_s=4 * NODE_GRACE_S,
        )
        settled_at = len(through_service.answers)
        before = at_survivor.num_answered()
        time.sleep(10)
        after = through_service.answers[settled_at:]
        assert at_survivor.num_answered() > before
        local_cluster.start_node(lost)
        healed_s = _wait_whole(local_cluster, namespace)

    figure("node crashed, known to Kubernetes after", f"{noticed_s:.0f} s")
    figure("requests failed through the Service meanwhile", str(len(through_service.failures)))
    figure("node started again, whole after", f"{healed_s:.0f} s")
    assert at_survivor.failures == [], "the router that is left loses nothing"
    assert any(not answer.error for answer in after), "the Service has forgotten the lost router"


@contextmanager
def _load(cluster: LocalCluster, namespace: str) -> Iterator[Load]:
    with cluster.tunnel(NAME, 80, namespace=namespace) as address:
        # kube-proxy takes up to a minute to hear of a new Service after the API server was gone:
        # its watches wait for 30 s between tries, and as much again by chance.
        cluster.wait_until(
            "the Service is reached", lambda: _is_served(address), timeout_s=4 * PROXY_WAIT_S
        )
        with Load(address, NAME) as load:
            cluster.wait_until("the first answers", lambda: load.num_answered() >= 2)
            yield load


def _is_served(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=10):
            return True
    except OSError:
        return False


def _pods(cluster: LocalCluster, namespace: str, component: str) -> list[dict[str, Any]]:
    selector = f"quire.dev/deployment={NAME},app.kubernetes.io/component={component}"
    return cluster.items("pod", namespace=namespace, selector=selector)


def _delete_pod(cluster: LocalCluster, namespace: str, name: str, *flags: str) -> None:
    cluster.kubectl("delete", "pod", name, f"--namespace={namespace}", "--wait=false", *flags)


def _wait_replaced(cluster: LocalCluster, namespace: str, old: dict[str, Any]) -> float:
    def is_replaced() -> bool:
        pods = _pods(cluster, namespace, "engine")
        return old["uid"] not in {pod["metadata"]["uid"] for pod in pods} and _is_whole(
            cluster, namespace
        )

    return cluster.wait_until("the pod is replaced", is_replaced, timeout_s=READY_LIMIT_S)


def _wait_whole(cluster: LocalCluster, namespace: str) -> float:
    return cluster.wait_until(
        "both engines and both routers are Ready",
        lambda: _is_whole(cluster, namespace),
        timeout_s=READY_LIMIT_S,
    )


def _is_whole(cluster: LocalCluster, namespace: str) -> bool:
    try:
        llmd = cluster.get("llmd", NAME, namespace=namespace)
    except CommandError:
        return False
    pods = [*_pods(cluster, namespace, "engine"), *_pods(cluster, namespace, "router")]
    conditions = llmd.get("status", {}).get("conditions", [])
    return (
        len(pods) == 4
        and all(_is_true(pod["status"].get("conditions", []), "Ready") for pod in pods)
        and _is_true(conditions, "Ready")
        and llmd["status"].get("readyReplicas") == 2
    )


def _is_true(conditions: list[dict[str, Any]], kind: str) -> bool:
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)


def _is_node_ready(cluster: LocalCluster, node: str) -> bool:
    return _is_true(cluster.get("node", node)["status"]["conditions"], "Ready")


def _router_on(cluster: LocalCluster, namespace: str, node: str) -> str:
    routers = _pods(cluster, namespace, "router")
    [address] = [pod["status"]["podIP"] for pod in routers if pod["spec"]["nodeName"] == node]
    return str(address)


def _leader(release: Release) -> str:
    leases = release.cluster.items("lease", namespace=release.namespace)
    holders = [lease["spec"].get("holderIdentity") or "" for lease in leases]
    pods = release.operator_pods()
    return next((pod for pod in pods for holder in holders if holder.startswith(pod)), "")


def _exists(cluster: LocalCluster, kind: str, name: str, namespace: str) -> bool:
    found = cluster.kubectl("get", kind, name, f"--namespace={namespace}", "--ignore-not-found")
    return bool(found)
