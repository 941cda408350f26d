"""The chart on a real API server: rights, upgrades, and what stays when it goes."""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chart import CHART, HELM, ROOT, of_kind, pod_specs, render, set_flags
from local_cluster.cluster import Cluster, LocalCluster
from local_cluster.gpu_nodes import H100_SXM, SimulatedNode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SYSTEM = "quire-system"
SAMPLES = ROOT / "manifests" / "samples"
ACCOUNT = "quire-operator"


@pytest.fixture
def team(control_plane: LocalCluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"team-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


def helm(cluster: Cluster, *arguments: str) -> str:
    """Run helm on a cluster, in the operator's namespace."""
    command = [str(HELM), *arguments, f"--namespace={SYSTEM}", f"--kubeconfig={cluster.kubeconfig}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def release(cluster: Cluster, values: Mapping[str, Any]) -> Iterator[str]:
    """Install the chart and yield the notes; nothing is left of it, the CRD included."""
    flags = ["--create-namespace", *set_flags(values)]
    try:
        yield helm(cluster, "install", "quire", str(CHART), *flags)
    finally:
        helm(cluster, "uninstall", "quire", "--wait", "--ignore-not-found")
        cluster.kubectl("delete", "crd", "llmdeployments.quire.dev", "--ignore-not-found")


@contextmanager
def operator(cluster: Cluster, folder: Path, values: Mapping[str, Any]) -> Iterator["Operator"]:
    """Run the operator here, as the chart's account and with the chart's flags."""
    [deployment] = of_kind(render(values), "Deployment")
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    kubeconfig = account_kubeconfig(cluster, folder)
    own = [f"--kubeconfig={kubeconfig}", f"--namespace={SYSTEM}"]
    addresses = ["--metrics-address=127.0.0.1:18080", "--health-address=127.0.0.1:18081"]
    log = folder / "operator.log"
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "quire_operator", *args, *own, *addresses],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            yield Operator(process, log)
        finally:
            process.terminate()
            process.wait(120)


class Operator:
    """The operator's process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log

    def is_ready(self) -> bool:
        return self._answers("/readyz")

    def is_up(self) -> bool:
        return self._answers("/healthz")

    def _answers(self, path: str) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:18081{path}", timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def num_requests(self, code: str) -> float:
        """Return how many of its requests the API server answered with a status code."""
        with urllib.request.urlopen("http://127.0.0.1:18080/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "rest_client_requests_total" and sample.labels["code"] == code
        )

    def assert_nothing_was_forbidden(self) -> None:
        log = self.log.read_text()
        assert self.num_requests("403") == 0, log
        # kopf has a client of its own, which does not count.
        assert "orbidden" not in log
        assert "permission" not in log


def account_kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Write a kubeconfig of the operator's service account, which has the rendered roles alone."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", ACCOUNT, f"--namespace={SYSTEM}").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def samples() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(SAMPLES.glob("*.yaml"))]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def is_judged(cluster: Cluster, name: str, namespace: str) -> bool:
    found = cluster.get("llmd", name, namespace=namespace)
    generation: int = found["metadata"]["generation"]
    return bool(found.get("status", {}).get("observedGeneration") == generation)


def deploy_samples(cluster: Cluster, namespace: str) -> list[str]:
    """Apply every sample, wait until the operator has judged each, and return their names."""
    deployments = [item for item in samples() if item["kind"] == "LLMDeployment"]
    cluster.apply(*deployments, namespace=namespace)
    names = [item["metadata"]["name"] for item in deployments]
    cluster.wait_until(
        "every sample is judged",
        lambda: all(is_judged(cluster, name, namespace) for name in names),
    )
    return names


def test_the_operator_needs_no_right_that_the_chart_does_not_give(
    control_plane: LocalCluster, team: str, tmp_path: Path
) -> None:
    values = {"rbac": {"secrets": True}}
    with release(control_plane, values), operator(control_plane, tmp_path, values) as running:
        control_plane.wait_until("the operator is ready", running.is_ready)
        names = deploy_samples(control_plane, team)
        control_plane.kubectl("scale", f"llmd/{names[0]}", "--replicas=3", "-n", team)
        control_plane.wait_until(
            "the scale is carried out",
            lambda: num_replicas(control_plane, names[0], team) == 3,
        )
        control_plane.kubectl("delete", "llmd", "--all", "-n", team)

        assert running.num_requests("201") > 0
        running.assert_nothing_was_forbidden()


def num_replicas(cluster: Cluster, name: str, namespace: str) -> int:
    sets = cluster.items(
        "statefulsets", namespace=namespace, selector=f"quire.dev/deployment={name}"
    )
    return sum(item["spec"]["replicas"] for item in sets)


def test_without_a_right_on_secrets_everything_else_goes_on(
    control_plane: LocalCluster, team: str, tmp_path: Path
) -> None:
    with release(control_plane, {}), operator(control_plane, tmp_path, {}) as running:
        control_plane.wait_until("the operator is ready", running.is_ready)

        deploy_samples(control_plane, team)

        answer = control_plane.kubectl(
            *("auth", "can-i", "--list", f"--as=system:serviceaccount:{SYSTEM}:{ACCOUNT}"),
        )
        assert "secrets" not in answer


def test_an_operator_of_some_namespaces_has_no_rights_elsewhere(
    control_plane: LocalCluster, team: str, tmp_path: Path
) -> None:
    values = {
        "watchNamespaces": [team],
        "rbac": {"nodes": False, "secrets": True},
    }
    with release(control_plane, values), operator(control_plane, tmp_path, values) as running:
        control_plane.wait_until("the operator is ready", running.is_ready)
        control_plane.apply(samples()[0], namespace="default")

        deploy_samples(control_plane, team)

        running.assert_nothing_was_forbidden()
        assert "status" not in control_plane.get("llmd", samples()[0]["metadata"]["name"])
        control_plane.kubectl("delete", "llmd", "--all", "--namespace=default")
        for verb, kind in (("create", "statefulsets"), ("list", "nodes"), ("get", "secrets")):
            assert can(control_plane, verb, kind, "default") is False


def can(
    cluster: Cluster, verb: str, kind: str, namespace: str, *flags: str, user: str = ""
) -> bool:
    who = user or f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
    review = ["auth", "can-i", verb, kind, f"--namespace={namespace}", f"--as={who}", *flags]
    done = subprocess.run([*cluster._kubectl, *review], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "yes"


def test_a_right_that_is_missing_would_have_been_noticed(
    control_plane: LocalCluster, team: str, tmp_path: Path
) -> None:
    with release(control_plane, {}):
        role = control_plane.get("clusterrole", "quire-operator")
        role["rules"] = [rule for rule in role["rules"] if "statefulsets" not in rule["resources"]]
        control_plane.apply(
            {key: role[key] for key in ("apiVersion", "kind", "rules")}
            | {"metadata": {"name": "quire-operator"}}
        )
        with operator(control_plane, tmp_path, {}) as running:
            control_plane.apply(samples()[0], namespace=team)
            control_plane.wait_until(
                "a request is refused", lambda: running.is_up() and running.num_requests("403") > 0
            )


def test_people_work_with_deployments_by_the_clusters_own_roles(
    control_plane: LocalCluster, team: str
) -> None:
    with release(control_plane, {}):
        for role in ("view", "edit"):
            binding = f"{role}er"
            control_plane.kubectl(
                *("create", "rolebinding", binding, f"--clusterrole={role}"),
                *(f"--user={binding}", f"--namespace={team}"),
            )

        def may(user: str, verb: str, part: str = "") -> bool:
            flag = f"--subresource={part}"
            return can(control_plane, verb, "llmdeployments.quire.dev", team, flag, user=user)

        control_plane.wait_until("roles are aggregated", lambda: may("viewer", "get"))
        assert not may("viewer", "create")
        assert may("editer", "create")
        assert may("editer", "patch", "scale")
        assert not may("editer", "patch", "status")


def test_pod_security_restricted_admits_every_pod(control_plane: LocalCluster, team: str) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", team, enforce)
    control_plane.wait("serviceaccount/default", "create", namespace=team)
    for name, spec in pod_specs(render({})):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
        pod["spec"] = {key: value for key, value in spec.items() if key != "serviceAccountName"}
        options = ["--dry-run=server", f"--namespace={team}", "-f", "-"]
        assert "created" in control_plane.kubectl("create", *options, stdin=json.dumps(pod))


def test_the_notes_name_nodes_that_lack_their_labels(control_plane: LocalCluster) -> None:
    control_plane.add_simulated_nodes([SimulatedNode(name="gpu-1", gpu=H100_SXM)])
    try:
        with release(control_plane, {}) as notes:
            assert "GPU nodes lack the label" not in notes
        control_plane.kubectl("label", "node", "gpu-1", "nvidia.com/gpu.product-")
        with release(control_plane, {}) as notes:
            assert "1 of 1 GPU nodes lack the label nvidia.com/gpu.product" in notes
    finally:
        control_plane.remove_simulated_nodes()


def test_upgrades_and_rollbacks_change_what_they_should_and_deployments_stay(
    control_plane: LocalCluster, team: str
) -> None:
    def flags() -> list[str]:
        found = control_plane.get("deployment", "quire-operator", namespace=SYSTEM)
        args: list[str] = found["spec"]["template"]["spec"]["containers"][0]["args"]
        return args

    with release(control_plane, {}) as notes:
        assert "No node offers nvidia.com/gpu" not in notes, "there are no nodes to judge"
        control_plane.apply(samples()[0], namespace=team)
        helm(control_plane, "upgrade", "quire", str(CHART), "--set=operator.logLevel=debug")
        assert "--log-level=debug" in flags()
        helm(control_plane, "rollback", "quire")
        assert "--log-level=info" in flags()
        helm(control_plane, "uninstall", "quire", "--wait")

        kept = control_plane.items("llmd", namespace=team)
        assert [item["metadata"]["name"] for item in kept] == [samples()[0]["metadata"]["name"]]
        helm(control_plane, "install", "quire", str(CHART))


def test_the_deployments_of_the_values_come_with_the_second_run(
    control_plane: LocalCluster, team: str
) -> None:
    spec = {"model": {"source": "demo://SmolLM2-135M-Instruct"}, "engine": {"device": "cpu"}}
    item = {"name": "from-values", "namespace": team, "spec": spec}
    values = {"deployments": [item]}
    with release(control_plane, values) as notes:
        assert "not made yet" in notes
        again = helm(control_plane, "upgrade", "quire", str(CHART), *set_flags(values))

        assert "not made yet" not in again
        assert control_plane.get("llmd", "from-values", namespace=team)


def test_the_plain_manifests_install_on_a_real_server(control_plane: LocalCluster) -> None:
    manifests = str(ROOT / "manifests")
    try:
        control_plane.kubectl("apply", "--server-side", "-k", manifests)
        again = control_plane.kubectl("diff", "--server-side", "-f", f"{manifests}/install.yaml")
    finally:
        control_plane.kubectl("delete", "-k", manifests, "--wait=false")

    assert again == ""
