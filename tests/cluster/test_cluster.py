"""The cluster itself: what the other tests take for granted."""

import json
import urllib.request
from collections.abc import Iterator

import pytest

from image_builder import OPERATOR
from local_cluster.cluster import LocalCluster
from local_cluster.gpu_nodes import H100_SXM, SimulatedNode
from local_cluster.images import publish_image

pytestmark = pytest.mark.timeout(600)


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


ASK = """
import sys, time, urllib.request
for attempt in range(600):
    try:
        print(urllib.request.urlopen(sys.argv[1], timeout=60).read())
        break
    except OSError:
        time.sleep(0.2)
"""
"""Asks until it is answered: a node refuses connections to a Service until it hears of its pods."""


def test_pods_find_each_other_by_name_and_are_read_and_entered(
    local_cluster: LocalCluster, namespace: str
) -> None:
    image = publish_image(local_cluster, OPERATOR, version="0.1.0").name
    # Writing to the log at once is what the test reads below.
    container = {
        "name": "web",
        "image": image,
        "command": ["python", "-u", "-m", "http.server", "8080", "--directory", "/etc"],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [container]},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "front"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    local_cluster.apply(pod, service, namespace=namespace)
    local_cluster.wait("pod/web", "condition=Ready", namespace=namespace)

    # The pod calls itself by the Service's name, which takes DNS and the way back through NAT.
    url = f"http://front.{namespace}.svc.cluster.local/hostname"
    option = f"--namespace={namespace}"
    entered = local_cluster.kubectl("exec", "web", option, "--", "python", "-c", ASK, url)
    with (
        local_cluster.tunnel("front", 80, namespace=namespace) as address,
        urllib.request.urlopen(f"http://{address}/hostname", timeout=60) as response,
    ):
        seen = response.read()

    assert entered.strip() == repr(b"web\n")
    assert seen == b"web\n"
    assert local_cluster.kubectl("logs", "web", option).count("GET /hostname") == 2


def test_api_server_comes_back_with_what_it_knew(local_cluster: LocalCluster) -> None:
    local_cluster.kubectl("create", "configmap", "kept", "--from-literal=a=b")

    local_cluster.stop_api_server()
    local_cluster.start_api_server()

    assert local_cluster.get("configmap", "kept")["data"] == {"a": "b"}
    local_cluster.kubectl("delete", "configmap", "kept")


def test_tunnel_reaches_the_registry(local_cluster: LocalCluster) -> None:
    with (
        local_cluster.tunnel_to("198.18.0.1", 5000) as address,
        urllib.request.urlopen(f"http://{address}/v2/", timeout=60) as response,
    ):
        assert json.load(response) == {}
