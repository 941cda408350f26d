"""The operator process on a real API server: replicas, signals, a server that goes away, drift."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from local_cluster.cluster import LocalCluster
from local_cluster.errors import CommandError
from operator_process import OperatorProcess, operator_process
from operator_runs import llm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CRDS = Path(__file__).parents[2] / "crds"
LIMIT_S = 300
LEASE = (
    *("--namespace=default", "--lease-duration-s=12"),
    *("--renew-deadline-s=8", "--retry-period-s=1"),
)
CONTROLLER_RUNTIME = (
    'controller_runtime_reconcile_total{controller="llmdeployment",result="success"}',
    'controller_runtime_reconcile_errors_total{controller="llmdeployment"}',
    'controller_runtime_reconcile_time_seconds_count{controller="llmdeployment"}',
    'controller_runtime_max_concurrent_reconciles{controller="llmdeployment"}',
    'controller_runtime_active_workers{controller="llmdeployment"}',
    'workqueue_depth{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_adds_total{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_retries_total{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_queue_duration_seconds_count{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_work_duration_seconds_count{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_unfinished_work_seconds{controller="llmdeployment",name="llmdeployment"}',
    'workqueue_longest_running_processor_seconds{controller="llmdeployment",name="llmdeployment"}',
    'leader_election_master_status{name="quire-operator"}',
)


@pytest.fixture(scope="module")
def plane(control_plane: LocalCluster) -> LocalCluster:
    for crd in CRDS.glob("*.yaml"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    return control_plane


@pytest.fixture
def namespace(plane: LocalCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:50].strip("-")
    plane.kubectl("create", "namespace", name)
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false")


def create(plane: LocalCluster, name: str, namespace: str, **spec: Any) -> None:
    plane.apply(llm(name, namespace, **spec), namespace=namespace)


def observed(plane: LocalCluster, name: str, namespace: str) -> int:
    status = plane.get("llmd", name, namespace=namespace).get("status") or {}
    generation: int = status.get("observedGeneration", 0)
    return generation


def wait_served(plane: LocalCluster, name: str, namespace: str, generation: int = 1) -> float:
    return plane.wait_until(
        f"{name} is served",
        lambda: observed(plane, name, namespace) >= generation,
        timeout_s=LIMIT_S,
    )


def wait_leading(plane: LocalCluster, replica: OperatorProcess) -> float:
    return plane.wait_until("a replica leads", replica.is_leading, timeout_s=LIMIT_S)


def holder(plane: LocalCluster) -> str:
    spec = plane.get("lease", "quire-operator")["spec"]
    name: str = spec.get("holderIdentity", "")
    return name


def test_one_of_two_replicas_writes_and_the_other_takes_over(
    plane: LocalCluster, namespace: str, figure: Callable[[str, str], None]
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(operator_process(plane.kubeconfig, *LEASE, "--identity=a"))
        wait_leading(plane, first)
        second = stack.enter_context(operator_process(plane.kubeconfig, *LEASE, "--identity=b"))
        create(plane, "one", namespace)
        wait_served(plane, "one", namespace)
        assert not second.is_leading()
        assert second.writes().total() == 0

        assert first.stop() == 0
        assert not holder(plane).startswith("a_"), "a stopped leader gives its Lease back"
        figure("leader stopped, the other leads after", f"{wait_leading(plane, second):.1f} s")

        third = stack.enter_context(operator_process(plane.kubeconfig, *LEASE, "--identity=c"))
        second.kill()
        killed_at = time.monotonic()
        create(plane, "two", namespace)
        wait_served(plane, "two", namespace)
        took_s = time.monotonic() - killed_at
        figure("leader killed (12 s lease), a new deployment is served after", f"{took_s:.1f} s")
        assert third.is_leading()


def test_drift_is_repaired_and_foreign_fields_are_left(plane: LocalCluster, namespace: str) -> None:
    with operator_process(plane.kubeconfig, "--no-leader-election"):
        create(plane, "llm", namespace)
        wait_served(plane, "llm", namespace)
        name = plane.items("statefulset", namespace=namespace)[0]["metadata"]["name"]

        patch = {"metadata": {"labels": {"team": "ml"}}, "spec": {"replicas": 7}}
        plane.kubectl(
            "patch", "statefulset", name, f"--namespace={namespace}", "--type=merge",
            f"--patch={json.dumps(patch)}",
        )  # fmt: skip
        service = plane.items("service", namespace=namespace)[0]["metadata"]["name"]
        plane.kubectl("delete", "service", service, f"--namespace={namespace}")

        def is_repaired() -> bool:
            live = plane.get("statefulset", name, namespace=namespace)
            services = plane.items("service", namespace=namespace)
            return live["spec"]["replicas"] == 1 and service in [
                item["metadata"]["name"] for item in services
            ]

        plane.wait_until("the drift is repaired", is_repaired, timeout_s=LIMIT_S)
        live = plane.get("statefulset", name, namespace=namespace)
        assert live["metadata"]["labels"]["team"] == "ml"


def test_a_restart_writes_nothing(plane: LocalCluster, namespace: str) -> None:
    # What one operator has put off, the next one reports.
    flags = ("--no-leader-election", "--progress-s=1")
    with operator_process(plane.kubeconfig, *flags) as operator:
        create(plane, "llm", namespace)
        wait_served(plane, "llm", namespace)
        _wait_quiet(plane, operator)

    with operator_process(plane.kubeconfig, "--no-leader-election") as operator:
        plane.wait_until(
            "it has looked",
            lambda: operator.metrics().get(CONTROLLER_RUNTIME[2], 0.0) > 0,
            timeout_s=LIMIT_S,
        )
        time.sleep(3.0)
        assert operator.writes().total() == 0


def test_a_server_that_goes_away_is_waited_for(
    plane: LocalCluster, namespace: str, figure: Callable[[str, str], None]
) -> None:
    with operator_process(plane.kubeconfig, *LEASE) as operator:
        wait_leading(plane, operator)
        create(plane, "before", namespace)
        wait_served(plane, "before", namespace)

        plane.stop_api_server()
        plane.wait_until("it steps down", lambda: not operator.is_leading(), timeout_s=LIMIT_S)
        time.sleep(10.0)
        assert operator.health()[0] == 200, "waiting for a server is no reason to be restarted"
        plane.start_api_server()
        started_at = time.monotonic()
        _retry(lambda: create(plane, "after", namespace))
        wait_served(plane, "after", namespace)
        took_s = time.monotonic() - started_at
        figure("API server back, a new deployment is served after", f"{took_s:.1f} s")
        plane.kubectl("delete", "llmd", "before", f"--namespace={namespace}")
        selector = "quire.dev/deployment=before"
        plane.wait_until(
            "its children are gone",
            lambda: not plane.items("statefulset", namespace=namespace, selector=selector),
            timeout_s=LIMIT_S,
        )


def test_only_the_namespaces_that_it_was_given_are_served(
    plane: LocalCluster, namespace: str
) -> None:
    flags = ("--no-leader-election", f"--watch-namespaces={namespace}", "--no-watch-nodes")
    with operator_process(plane.kubeconfig, *flags):
        create(plane, "elsewhere", "default")
        create(plane, "here", namespace)
        wait_served(plane, "here", namespace)
        time.sleep(2.0)
        assert observed(plane, "elsewhere", "default") == 0
    plane.kubectl("delete", "llmd", "elsewhere")


def test_metrics_have_the_names_that_dashboards_know(plane: LocalCluster, namespace: str) -> None:
    with operator_process(plane.kubeconfig, "--no-leader-election") as operator:
        create(plane, "llm", namespace)
        wait_served(plane, "llm", namespace)

        metrics = operator.metrics()
        assert [name for name in CONTROLLER_RUNTIME if name not in metrics] == []
        about = f'name="llm",namespace="{namespace}"'
        held = {
            status: metrics[
                f'quire_llmdeployment_condition{{{about},status="{status}",type="Accepted"}}'
            ]
            for status in ("True", "False", "Unknown")
        }
        assert held == {"True": 1.0, "False": 0.0, "Unknown": 0.0}
        assert any(name.startswith("rest_client_requests_total{") for name in metrics)

    events = plane.items("event", namespace=namespace)
    mine = [event for event in events if event["involvedObject"]["kind"] == "LLMDeployment"]
    assert {event["source"]["component"] for event in mine} == {"quire-operator"}


def test_without_its_crd_it_waits_and_says_so(plane: LocalCluster) -> None:
    with operator_process(plane.kubeconfig, "--no-leader-election") as operator:
        plane.kubectl("delete", "crd", "llmdeployments.quire.dev")
        waiting = OperatorProcess(plane.kubeconfig, "--no-leader-election")
        try:
            plane.wait_until("it says so", lambda: "CRD" in waiting.health("readyz")[1])
            assert waiting.health()[0] == 200
            for crd in CRDS.glob("*.yaml"):
                plane.kubectl("apply", "--server-side", "-f", str(crd))
            waiting.wait_ready()
            assert waiting.stop() == 0
        finally:
            waiting.kill()
        assert operator.is_running


def _wait_quiet(plane: LocalCluster, operator: OperatorProcess) -> None:
    def is_quiet() -> bool:
        before = operator.writes()
        time.sleep(6.0)
        return operator.writes() == before

    plane.wait_until("nothing is written", is_quiet, timeout_s=LIMIT_S)


def _retry(function: Callable[[], None], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return function()
        except CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
