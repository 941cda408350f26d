"""Everything that is shipped for Prometheus and Grafana, asked of a real Prometheus.

It scrapes two engines and a router under load, and an operator on a real API server, with the
labels that PodMonitors give. Then every query of every panel and every rule must have had values,
or be on a short list with the reason. All but the engines' model is real.
"""

import asyncio
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import openai
import pytest
import pytest_asyncio
import yaml

from local_cluster.cluster import LocalCluster
from local_cluster.gpu_nodes import SimulatedNode
from operator_process import OperatorProcess, operator_process
from operator_runs import llm
from prometheus_server import Prometheus, Target, prometheus
from serve_process import free_port
from serving_processes import Server, engine, router, tcp_engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "quire"
NAMESPACE, NAME = "default", "chat"
LOAD_S = 35.0
HANG_S = 2.5
AFTERMATH_S = 5.0
NUM_CLIENTS = 8
CHOICES = {
    "__rate_interval": "10s",
    "quantile": "0.95",
    "price": "3",
    "namespace": ".*",
    "deployment": ".*",
    "replica": ".*",
}
RIGHTLY_EMPTY = {
    "Endpoints": "only Kubernetes tells states of endpoints; tests/cluster/test_discovery.py",
    "Lists and failures": "only Kubernetes is asked for lists",
    "Replicas and their pods": "only Kubernetes tells pods and nodes",
    "Roofline share": "no device, no peak to compare with; tests/engine/server has it",
    "Firing": "nothing fires in a healthy system",
}
"""Panels, and why they have nothing to show here."""
SERIES = re.compile(
    r"\b((?!quire_dev_)(?:quire[_:]|controller_runtime_|workqueue_|process_|up\b)[\w:]*)(\{[^}]*\})?"
)
"""Names and matchers of series in a query."""
SLO_FLAGS = ("--slo-ttft-ms", "500", "--slo-itl-ms", "50")


def about(pod: str, component: str) -> dict[str, str]:
    return {
        "namespace": NAMESPACE,
        "pod": pod,
        "quire_dev_deployment": NAME,
        "app_kubernetes_io_component": component,
    }


@pytest.fixture(scope="module")
def operator(control_plane: LocalCluster) -> Iterator[OperatorProcess]:
    """An operator with one deployment, whose pods are simulated."""
    for crd in (ROOT / "crds").glob("*.yaml"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    control_plane.add_simulated_nodes([SimulatedNode(name="gpu-0")])
    with operator_process(control_plane.kubeconfig, f"--namespace={NAMESPACE}") as running:
        control_plane.apply(llm(NAME, NAMESPACE, replicas=2), namespace=NAMESPACE)
        yield running
        control_plane.kubectl("delete", "llmd", NAME, f"--namespace={NAMESPACE}")


async def ask(client: openai.AsyncOpenAI, number: int) -> None:
    """Ask one question: most stream, share a beginning, and end; some are left or refused."""
    prompt = f"{'You are a patient teacher. ' * 40}Question {number}: why?"
    stream = await client.completions.create(
        model="fake", prompt=prompt, max_tokens=30, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        if number % 11 == 0:
            await stream.close()
            return
    if number % 5 == 0:
        with suppress(openai.BadRequestError):
            await client.completions.create(model="fake", prompt=prompt, max_tokens=-1)


@asynccontextmanager
async def load(server: Server) -> AsyncIterator[None]:
    """Clients that ask one question after another."""
    numbers = itertools.count()

    async def ask_on() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0
        ) as client:
            while True:
                with suppress(openai.OpenAIError):
                    await ask(client, next(numbers))

    tasks = [asyncio.create_task(ask_on()) for _ in range(NUM_CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(
    operator: OperatorProcess,
    control_plane: LocalCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Prometheus]:
    """Prometheus, after a while of load, at the end of which one of two engines was killed."""
    folder = tmp_path_factory.mktemp("prometheus")
    ports = (free_port(), free_port())
    async with (
        engine(folder / "engine.sock", *SLO_FLAGS, "--metrics-port", str(ports[0])) as first,
        tcp_engine(*SLO_FLAGS, "--metrics-port", str(ports[1])) as second,
        router(first.address, f"dns:///{second.address}", flags=SLO_FLAGS) as serving,
    ):
        targets = targets_of(ports, serving, operator)
        with prometheus(folder, targets, CHART / "files" / "rules.yaml") as server:
            async with load(serving):
                await asyncio.sleep(LOAD_S / 2)
                # Something for the operator to do while it is watched.
                scaling = ("scale", "llmd", NAME, f"--namespace={NAMESPACE}", "--replicas=3")
                await asyncio.to_thread(control_plane.kubectl, *scaling)
                await asyncio.sleep(LOAD_S / 2)
                assert [item for item in server.targets() if item["health"] != "up"] == []
                assert server.num_values('ALERTS{alertstate="firing"}') == 0
                # What it is sent while it hangs must go elsewhere when it dies.
                second.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(HANG_S)
                second.process.kill()
                await asyncio.sleep(AFTERMATH_S)
            yield server


def targets_of(ports: Sequence[int], serving: Server, operator: OperatorProcess) -> list[Target]:
    engines = [
        Target(job=pod, address=f"127.0.0.1:{port}", labels=about(pod, "engine"))
        for pod, port in zip(("chat-0", "chat-1"), ports, strict=True)
    ]
    return [
        *engines,
        Target(job="router", address=serving.address, labels=about("chat-router", "router")),
        Target(
            job="operator",
            address=operator.metrics_address,
            labels={"namespace": "quire-system", "pod": "quire-operator"},
            honor_labels=True,
        ),
    ]


def panel_queries() -> Iterator[tuple[str, str, str]]:
    """Yield (board, panel, query) of every board, with the choices filled in."""
    for path in sorted((CHART / "files" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield board["uid"], panel["title"], filled(target["expr"])


def filled(text: str) -> str:
    return re.sub(r"\$(\w+)", lambda match: CHOICES[match[1]], text)


def test_every_query_of_every_panel_returns_values(
    watched: Prometheus, figure: Callable[[str, str], None]
) -> None:
    empty = [
        (board, panel, query)
        for board, panel, query in panel_queries()
        if watched.num_values(query) == 0
    ]

    unexplained = [" | ".join(item) for item in empty if item[1] not in RIGHTLY_EMPTY]
    assert not unexplained, "\n".join(unexplained)
    num_queries = len(list(panel_queries()))
    figure("panel queries with values", f"{num_queries - len(empty)} of {num_queries}")
    assert {panel for _, panel, _ in empty} == set(RIGHTLY_EMPTY)


def test_every_choice_has_something_to_choose(watched: Prometheus) -> None:
    for path in (CHART / "files" / "dashboards").glob("*.json"):
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                query = filled(variable["query"]["query"])
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
                assert match, query
                values = watched.get(f"label/{match[2]}/values", **{"match[]": match[1]})
                assert values, f"{path.stem}: {variable['name']}"


def test_every_recording_has_values(
    watched: Prometheus, figure: Callable[[str, str], None]
) -> None:
    names = {rule["name"] for rule in watched.rules() if rule["type"] == "recording"}

    assert {name for name in names if watched.num_values(name) == 0} == set()
    figure("recording rules with values", f"{len(names)}")


def test_every_alert_is_about_series_that_there_are(
    watched: Prometheus, figure: Callable[[str, str], None]
) -> None:
    alerts = [rule for rule in watched.rules() if rule["type"] == "alerting"]
    known = set(watched.get("label/__name__/values"))

    for alert in alerts:
        assert alert["health"] == "ok", alert.get("lastError")
        for name, matchers in SERIES.findall(alert["query"]):
            assert name in known, f"{alert['name']}: {name}"
            labels = re.findall(r"(\w+)[=!]", matchers)
            present = "".join(f',{label}!=""' for label in labels).removeprefix(",")
            assert watched.num_values(f"{name}{{{present}}}"), (
                f"{alert['name']}: {name}{{{present}}}"
            )
    figure("alerts evaluated on real series", f"{len(alerts)}")


def test_autoscalers_ask_for_what_there_is(watched: Prometheus) -> None:
    folder = ROOT / "manifests" / "autoscaling"
    keda = yaml.safe_load((folder / "keda.yaml").read_text())
    adapter = yaml.safe_load((folder / "prometheus-adapter-values.yaml").read_text())
    hpa = yaml.safe_load((folder / "hpa.yaml").read_text())

    for trigger in keda["spec"]["triggers"]:
        query = trigger["metadata"]["query"].removesuffix(" or vector(0)")
        assert watched.num_values(query), query
    for rule in adapter["rules"]["custom"]:
        found = watched.get("series", **{"match[]": rule["seriesQuery"]})
        assert found, rule["seriesQuery"]
    for metric in hpa["spec"]["metrics"]:
        assert watched.num_values(metric["pods"]["metric"]["name"])


def test_the_hpa_of_the_samples_is_one(control_plane: LocalCluster) -> None:
    path = ROOT / "manifests" / "autoscaling" / "hpa.yaml"

    answer = control_plane.kubectl("apply", "--dry-run=server", "-f", str(path))

    assert "created" in answer


def test_what_an_hpa_reads_of_a_deployment_is_its_engines(
    operator: OperatorProcess, control_plane: LocalCluster
) -> None:
    path = f"/apis/quire.dev/v1alpha1/namespaces/{NAMESPACE}/llmdeployments/{NAME}/scale"

    scale = json.loads(control_plane.kubectl("get", "--raw", path))

    assert scale["spec"]["replicas"] in (2, 3)
    assert "app.kubernetes.io/component=engine" in scale["status"]["selector"]
