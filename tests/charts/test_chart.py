"""The chart, rendered by the real helm over sets of values and Kubernetes versions."""

import shutil
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from chart import ALL_APIS, CHART, HELM, ROOT, VALUES, of_kind, pod_specs, render, set_flags
from chart_tools.manifests import Manifest, helm_template

KUBE_VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CUSTOM = {"LLMDeployment", "NodeFeatureRule", "PodMonitor", "PrometheusRule"}


@pytest.fixture(params=VALUES)
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VALUES[request.param], apis=ALL_APIS)


def crd_schema() -> dict[str, Any]:
    crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.quire.dev.yaml").read_text())
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_has_nothing_to_say(name: str) -> None:
    command = [str(HELM), "lint", "--strict", "--quiet", str(CHART), *set_flags(VALUES[name])]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("version", KUBE_VERSIONS)
def test_every_object_is_valid_in_every_supported_kubernetes(name: str, version: str) -> None:
    objects = render(VALUES[name], apis=ALL_APIS, kube_version=f"{version}.0")

    known = [manifest for manifest in objects if manifest["kind"] not in CUSTOM]
    assert {"Deployment", "ServiceAccount"} <= {manifest["kind"] for manifest in known}
    for manifest in known:
        kubernetes_validate.validate(manifest, version, strict=True)  # raises at what is wrong


def test_kubernetes_before_1_30_is_refused() -> None:
    with pytest.raises(Exception, match=r"requires kubeVersion: >=1\.30\.0-0"):
        render(kube_version="1.29.3")


def test_the_deployments_of_the_values_fit_the_crd() -> None:
    made = of_kind(render(VALUES["everything"], apis=ALL_APIS), "LLMDeployment")

    assert [item["metadata"]["namespace"] for item in made] == ["default"]
    jsonschema.validate(made[0], crd_schema())


def test_every_object_says_whose_it_is(rendered: list[Manifest]) -> None:
    own = [item for item in rendered if not item["metadata"]["name"].endswith("-extra")]

    assert [
        item for item in own if "app.kubernetes.io/part-of" not in item["metadata"]["labels"]
    ] == []
    assert [item for item in own if len(item["metadata"]["name"]) > 63] == []


def test_long_release_names_still_make_legal_names() -> None:
    objects = render({"fullnameOverride": "q" * 45})

    names = [item["metadata"]["name"] for item in objects]
    assert max(map(len, names)) <= 63


def test_pods_fit_pod_security_restricted(rendered: list[Manifest]) -> None:
    specs = dict(pod_specs(rendered))

    assert specs
    for spec in specs.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec)
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}


def test_a_digest_wins_over_the_tag_and_the_global_registry_over_all() -> None:
    objects = render(VALUES["everything"], apis=ALL_APIS)

    [operator] = of_kind(objects, "Deployment")
    [container] = operator["spec"]["template"]["spec"]["containers"]
    mirror = "registry.test:5000/quire-dev"
    assert container["image"] == f"{mirror}/quire-operator@sha256:{'0123456789abcdef' * 4}"
    assert f"--engine-image={mirror}/quire-engine:0.1.0-cuda13" in container["args"]
    assert f"--router-image={mirror}/quire-router:0.1.1" in container["args"]
    assert "--image-pull-secrets=registry,mirror" in container["args"]


def test_an_empty_registry_leaves_the_repository_alone() -> None:
    objects = render({"operator": {"image": {"registry": "", "repository": "quire-operator"}}})

    [operator] = of_kind(objects, "Deployment")
    assert operator["spec"]["template"]["spec"]["containers"][0]["image"] == "quire-operator:0.1.0"


def test_the_crd_is_the_source_and_stays_when_the_release_goes() -> None:
    [crd] = of_kind(render(), "CustomResourceDefinition")

    source = yaml.safe_load((ROOT / "crds" / "llmdeployments.quire.dev.yaml").read_text())
    assert crd["spec"] == source["spec"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    [unkept] = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in unkept["metadata"]
    assert of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def test_one_pod_gets_no_disruption_budget_that_would_block_drains() -> None:
    assert len(of_kind(render(), "PodDisruptionBudget")) == 1
    assert of_kind(render({"operator": {"replicas": 1}}), "PodDisruptionBudget") == []


def test_optional_apis_are_used_only_where_the_cluster_has_them() -> None:
    values = VALUES["everything"]

    assert {item["kind"] for item in render(values, apis=ALL_APIS)} >= CUSTOM
    assert not {item["kind"] for item in render(values)} & CUSTOM


def test_the_network_policy_allows_what_the_operator_needs_and_no_more() -> None:
    [policy] = of_kind(render(VALUES["everything"], apis=ALL_APIS), "NetworkPolicy")

    health, metrics = policy["spec"]["ingress"]
    dns, api_server = policy["spec"]["egress"]
    assert health == {"ports": [{"protocol": "TCP", "port": "health"}]}
    assert metrics["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == [
        "monitoring"
    ]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert api_server == {
        "ports": [{"protocol": "TCP", "port": 6443}],
        "to": [{"ipBlock": {"cidr": "198.18.0.1/32"}}],
    }


def test_pods_spread_by_their_own_labels() -> None:
    [operator] = of_kind(render(), "Deployment")

    [spread] = operator["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == operator["spec"]["selector"]["matchLabels"]


def test_upgrading_the_chart_never_changes_the_selector() -> None:
    [plain] = of_kind(render(), "Deployment")
    [labelled] = of_kind(
        render({"commonLabels": {"team": "a"}, "operator": {"podLabels": {"b": "c"}}}), "Deployment"
    )

    assert plain["spec"]["selector"] == labelled["spec"]["selector"]


def test_helm_test_asks_the_operator_and_every_deployment() -> None:
    [pod] = of_kind(render(VALUES["everything"], apis=ALL_APIS), "Pod")

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert [container["command"][-1] for container in pod["spec"]["containers"]] == [
        "http://llm-serving-operator.quire-system:8081/healthz",
        "http://first.default/v1/models",
    ]


def notes(folder: Path, values: Mapping[str, Any]) -> str:
    # helm shows the notes only of what it installs; a template that includes them shows them too.
    chart = shutil.copytree(CHART, folder / "quire", dirs_exist_ok=True)
    include = 'notes: {{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    (chart / "templates" / "notes.yaml").write_text(f"kind: Notes\n{include}\n")
    [document] = of_kind(helm_template(HELM, chart, *set_flags(values)), "Notes")
    return str(document["notes"])


def test_the_notes_say_what_comes_next_and_what_is_missing(tmp_path: Path) -> None:
    text = notes(tmp_path, {"deployments": VALUES["everything"]["deployments"]})

    assert "kubectl -n quire-system rollout status deployment/quire-operator" in text
    assert "No PodMonitors" in text
    assert "No KEDA" in text
    assert "not made yet" in text
    assert "leaves the CRD, every LLMDeployment" in text
    assert "GOES WITH THE RELEASE" in notes(tmp_path, {"crds": {"keep": False}})


def test_the_first_deployment_of_the_notes_fits_the_crd(tmp_path: Path) -> None:
    text = notes(tmp_path, {"watchNamespaces": ["team-a"]})

    assert "kubectl -n team-a apply -f -" in text
    indented = text.partition("<<EOF\n")[2].partition("  EOF")[0]
    jsonschema.validate(yaml.safe_load(textwrap.dedent(indented)), crd_schema())
