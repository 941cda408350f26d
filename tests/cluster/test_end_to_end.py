"""The whole of Quire on a real Kubernetes: what its users do, in the order in which they do it.

The tests share one deployment, which the last of them deletes.
"""

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from image_builder import ENGINE
from local_cluster.cluster import LocalCluster
from local_cluster.images import publish_image
from local_cluster.load import Load
from local_cluster.release import SAMPLES, Release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "smollm2"
READY_LIMIT_S = 600


@pytest.fixture(scope="module")
def namespace(local_cluster: LocalCluster) -> Iterator[str]:
    local_cluster.kubectl("create", "namespace", "chat")
    yield "chat"
    local_cluster.kubectl("delete", "namespace", "chat", "--wait=false")


@pytest.fixture(scope="module")
def deployment(release: Release, local_cluster: LocalCluster, namespace: str) -> str:
    """Apply the first sample, and return the deployment's name when it is Ready."""
    sample = str(SAMPLES / "01-smollm2.yaml")
    local_cluster.kubectl("apply", "-f", sample, f"--namespace={namespace}")
    _wait_ready(local_cluster, namespace)
    return NAME


def test_the_sample_answers_the_official_client(
    local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    with (
        local_cluster.tunnel(deployment, 80, namespace=namespace) as address,
        openai.OpenAI(base_url=f"http://{address}/v1", api_key="none") as client,
    ):
        models = [model.id for model in client.models.list()]
        completion = client.chat.completions.create(
            model=deployment,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=24,
            temperature=0,
        )

    assert deployment in models
    assert "Paris" in str(completion.choices[0].message.content)
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0


def test_kubectl_shows_what_is_served(
    local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    header, row = local_cluster.kubectl("get", "llmd", f"--namespace={namespace}").splitlines()

    assert header.split() == ["NAME", "MODEL", "READY", "DESIRED", "STATUS", "TP", "AGE"]
    assert row.split()[:5] == [deployment, "demo://SmolLM2-135M-Instruct", "1", "1", "Ready"]


def test_scale_adds_and_removes_replicas(
    local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    for num_replicas in (2, 1):
        _scale(local_cluster, namespace, num_replicas)

        assert len(_engine_pods(local_cluster, namespace)) == num_replicas
        status = local_cluster.get("llmd", deployment, namespace=namespace)["status"]
        assert status["readyReplicas"] == num_replicas


def test_a_router_of_several_processes_takes_over_without_a_failed_request(
    local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    with (
        local_cluster.tunnel(deployment, 80, namespace=namespace) as address,
        Load(address, deployment) as load,
    ):
        local_cluster.kubectl(
            *("patch", "llmd", deployment, f"--namespace={namespace}", "--type=merge"),
            # Small enough that both on one node leave an engine its room.
            '--patch={"spec": {"router": {"args": ["--workers=2"], "resources": {"cpu": "100m"}}}}',
        )
        local_cluster.wait_until(
            "only routers with the new argument are left",
            lambda: _have_argument(_router_pods(local_cluster, namespace), "--workers=2"),
            timeout_s=READY_LIMIT_S,
        )
        _wait_ready(local_cluster, namespace)
        local_cluster.wait_until(
            "each router has started two processes",
            lambda: _num_workers(local_cluster, namespace) == {2},
        )
        num_before = load.num_answered()
        local_cluster.wait_until("two more answers", lambda: load.num_answered() >= num_before + 2)

    assert load.failures == []


def test_the_chart_is_upgraded_and_rolled_back_while_requests_flow(
    release: Release, local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    engines = _uids(_engine_pods(local_cluster, namespace))
    operators = set(release.operator_pods())

    with (
        local_cluster.tunnel(deployment, 80, namespace=namespace) as address,
        Load(address, deployment) as load,
    ):
        release.upgrade(["--set=operator.logLevel=debug"])
        upgraded = set(release.operator_pods())
        release.helm("rollback", release.name, "--wait", "--timeout=10m")
        _wait_ready(local_cluster, namespace)

    assert not operators & upgraded
    assert _uids(_engine_pods(local_cluster, namespace)) == engines
    assert load.failures == []
    assert load.num_answered() > 0


def test_a_new_engine_image_rolls_without_a_failed_request(
    release: Release, local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    newer = publish_image(local_cluster, ENGINE, version="0.1.1")
    _scale(local_cluster, namespace, 2)
    patch = f'{{"spec": {{"engine": {{"image": "{newer.name}"}}}}}}'

    with (
        local_cluster.tunnel(deployment, 80, namespace=namespace) as address,
        Load(address, deployment) as load,
    ):
        local_cluster.wait_until("the first answer", lambda: load.num_answered() > 0)
        local_cluster.kubectl(
            *("patch", "llmd", deployment, f"--namespace={namespace}"),
            *("--type=merge", f"--patch={patch}"),
        )
        local_cluster.wait_until(
            "every engine runs the new image",
            lambda: _images(_engine_pods(local_cluster, namespace)) == {newer.name},
            timeout_s=READY_LIMIT_S,
        )
        _wait_ready(local_cluster, namespace)

    assert load.failures == []
    assert len({answer.text for answer in load.answers}) <= 2, "one text for each client"


def test_delete_leaves_nothing(
    local_cluster: LocalCluster, deployment: str, namespace: str
) -> None:
    local_cluster.kubectl(
        "delete", "llmd", deployment, f"--namespace={namespace}", "--timeout=300s"
    )

    deadline = time.monotonic() + 300
    while left := _left_over(local_cluster, namespace):
        assert time.monotonic() < deadline, f"left after 300 s: {left}"
        time.sleep(1)


def _wait_ready(cluster: LocalCluster, namespace: str) -> None:
    target = f"llmd/{NAME}"
    cluster.wait(target, "condition=Ready", namespace=namespace, timeout_s=READY_LIMIT_S)


def _scale(cluster: LocalCluster, namespace: str, num_replicas: int) -> None:
    replicas = f"--replicas={num_replicas}"
    cluster.kubectl("scale", "llmd", NAME, replicas, f"--namespace={namespace}")
    cluster.wait_until(
        f"{num_replicas} replicas are Ready",
        lambda: _is_settled(cluster, namespace, num_replicas),
        timeout_s=READY_LIMIT_S,
    )


def _is_settled(cluster: LocalCluster, namespace: str, num_replicas: int) -> bool:
    status = cluster.get("llmd", NAME, namespace=namespace)["status"]
    pods = _engine_pods(cluster, namespace)
    return bool(status.get("readyReplicas") == num_replicas == len(pods))


def _engine_pods(cluster: LocalCluster, namespace: str) -> list[dict[str, Any]]:
    selector = f"quire.dev/deployment={NAME},app.kubernetes.io/component=engine"
    return cluster.items("pod", namespace=namespace, selector=selector)


def _router_pods(cluster: LocalCluster, namespace: str) -> list[dict[str, Any]]:
    selector = f"quire.dev/deployment={NAME},app.kubernetes.io/component=router"
    return cluster.items("pod", namespace=namespace, selector=selector)


def _have_argument(pods: list[dict[str, Any]], argument: str) -> bool:
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    return all(argument in container.get("args", ()) for container in containers)


def _num_workers(cluster: LocalCluster, namespace: str) -> set[int]:
    """Return how many processes each router has started; no pod may be leaving."""
    return {
        cluster.kubectl("logs", pod["metadata"]["name"], f"--namespace={namespace}").count(
            "worker started"
        )
        for pod in _router_pods(cluster, namespace)
    }


def _uids(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def _images(pods: list[dict[str, Any]]) -> set[str]:
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]}


def _left_over(cluster: LocalCluster, namespace: str) -> list[str]:
    """Name every object of the deployment, of whatever kind the API server has."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name")
    wanted = ",".join(kind for kind in kinds.split() if kind != "events")
    options = ["--ignore-not-found", "--output=name", f"--namespace={namespace}"]
    return cluster.kubectl("get", wanted, f"-lquire.dev/deployment={NAME}", *options).split()
