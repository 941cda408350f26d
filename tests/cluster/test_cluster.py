"""The cluster itself: what the other tests take for granted."""

import json
import urllib.request
from collections.abc import Iterator

import pytest

from local_cluster.cluster import LocalCluster
from local_cluster.gpu_nodes import H100_SXM, SimulatedNode

pytestmark = pytest.mark.timeout(300)


def test_nodes_are_ready(local_cluster: LocalCluster) -> None:
    nodes = local_cluster.get("nodes")["items"]

    assert [node["metadata"]["name"] for node in nodes] == list(local_cluster.nodes)
    assert all(node["status"]["nodeInfo"]["kubeletVersion"] == "v1.34.4" for node in nodes)


def test_gpu_capacity_is_what_the_test_says(local_cluster: LocalCluster) -> None:
    local_cluster.set_gpus("node1", 4)

    status = local_cluster.get("node", "node1")["status"]
    assert status["allocatable"]["nvidia.com/gpu"] == "4"
    local_cluster.set_gpus("node1", 0)


@pytest.fixture
def simulated_node(local_cluster: LocalCluster) -> Iterator[str]:
    local_cluster.add_simulated_nodes([SimulatedNode(name="gpu-1", gpu=H100_SXM)])
    yield "gpu-1"
    local_cluster.remove_simulated_nodes()


def test_simulated_pod_becomes_ready(
    local_cluster: LocalCluster, simulated_node: str, namespace: str
) -> None:
    container = {
        "name": "main",
        "image": "nowhere.test/nothing:1",
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fake"},
        "spec": {
            "containers": [container],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    }
    local_cluster.apply(pod, namespace=namespace)

    local_cluster.wait("pod/fake", "condition=Ready", namespace=namespace)
    bound = local_cluster.get("pod", "fake", namespace=namespace)
    assert bound["spec"]["nodeName"] == simulated_node


def test_api_server_comes_back_with_what_it_knew(local_cluster: LocalCluster) -> None:
    local_cluster.kubectl("create", "configmap", "kept", "--from-literal=a=b")

    local_cluster.stop_api_server()
    local_cluster.start_api_server()

    assert local_cluster.get("configmap", "kept")["data"] == {"a": "b"}
    local_cluster.kubectl("delete", "configmap", "kept")


def test_tunnel_reaches_the_registry(local_cluster: LocalCluster) -> None:
    with (
        local_cluster.tunnel_to("198.18.0.1", 5000) as address,
        urllib.request.urlopen(f"http://{address}/v2/", timeout=10) as response,
    ):
        assert json.load(response) == {}
