"""What the chart promises the operator: flags that it has, rights that it needs and no others."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from chart import ALL_APIS, VALUES, of_kind, render
from chart_tools.manifests import Manifest
from quire_operator.config import RuntimeConfig
from quire_operator.flags import Parser
from quire_operator.plan import OperatorSettings
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, OPTIONAL_CHILDREN

OWN_VERBS = {"list", "watch", "create", "patch", "delete"}
Grant = tuple[str, str, str]


def operator_args(values: dict[str, Any]) -> list[str]:
    [operator] = of_kind(render(values, apis=ALL_APIS), "Deployment")
    args: list[str] = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def parse(values: dict[str, Any]) -> tuple[RuntimeConfig, OperatorSettings]:
    parser = Parser("quire-operator", "", {})
    parser.add_options(RuntimeConfig)
    parser.add_options(OperatorSettings)
    given = parser.parse_args(operator_args(values))
    return parser.build(RuntimeConfig, given), parser.build(OperatorSettings, given)


def grants(roles: Iterable[Manifest]) -> set[Grant]:
    """Return every (group, resource, verb) that roles allow."""
    return {
        grant
        for role in roles
        for rule in role["rules"]
        for grant in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


def operator_roles(objects: list[Manifest]) -> list[Manifest]:
    roles = of_kind(objects, "ClusterRole") + of_kind(objects, "Role")
    return [
        role
        for role in roles
        if role["metadata"]["labels"].get("app.kubernetes.io/component") == "operator"
    ]


@pytest.mark.parametrize("name", VALUES)
def test_the_operator_takes_every_flag_that_the_chart_gives(name: str) -> None:
    assert parse(VALUES[name])


def test_the_values_arrive_at_the_operator() -> None:
    runtime, settings = parse(VALUES["everything"])

    assert settings.image_pull_secrets == ("registry", "mirror")
    assert settings.image_pull_policy == "Always"
    assert settings.nvlink_label == ("quire.dev/nvlink", "true")
    assert settings.default_tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert settings.metrics_namespaces == ("monitoring",)
    assert settings.pod_monitor_labels == {"release": "prometheus"}
    assert settings.cluster_domain == "k8s.test"
    assert runtime.node_selector == "nvidia.com/gpu.present=true"
    assert runtime.lease_name == "llm-serving-operator"
    assert (runtime.log_level, runtime.log_format, runtime.num_workers) == ("debug", "text", 16)


def test_every_setting_of_the_operator_has_a_value() -> None:
    flags = {arg.partition("=")[0] for name in VALUES for arg in operator_args(VALUES[name])}
    # What the engine image can do is the engine's, not the administrator's.
    left = {"pipeline_parallelism", "adapters"}

    names = {item.name for item in dataclasses.fields(OperatorSettings)} - left
    given = {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}
    assert names - given == set()


def test_what_is_switched_off_is_off_at_the_operator() -> None:
    runtime, settings = parse(VALUES["single"])

    assert not settings.pod_monitors
    assert not settings.network_policies
    assert runtime.watch_nodes
    namespaced, _ = parse(VALUES["namespaced"])
    assert namespaced.watch_namespaces == ("team-a", "team-b")
    assert not namespaced.watch_nodes


@pytest.mark.parametrize("name", VALUES)
def test_the_roles_cover_every_kind_that_the_operator_writes(name: str) -> None:
    allowed = grants(operator_roles(render(VALUES[name])))

    plurals = {(item.api_version, item.kind): item.plural for item in BUILT_IN_CHILDREN}
    plurals |= {api: f"{api[1].lower()}s" for api in OPTIONAL_CHILDREN}
    missing = [
        (api_version, plural)
        for (api_version, _), plural in plurals.items()
        if not {
            verb
            for group, resource, verb in allowed
            if (group, resource) == (group_of(api_version), plural)
        }
        >= OWN_VERBS
    ]
    assert missing == []


def group_of(api_version: str) -> str:
    return api_version.rpartition("/")[0]


@pytest.mark.parametrize("name", VALUES)
def test_no_role_opens_a_door(name: str) -> None:
    allowed = grants(operator_roles(render(VALUES[name])))

    assert not [grant for grant in allowed if "*" in grant]
    assert not {"bind", "escalate", "impersonate", "approve", "sign"} & {
        verb for *_, verb in allowed
    }
    resources = {(group, resource) for group, resource, _ in allowed}
    assert not resources & {("", "pods/exec"), ("", "namespaces"), ("", "nodes/proxy")}
    assert not [
        group
        for group, _ in resources
        if group in ("apiextensions.k8s.io", "admissionregistration.k8s.io")
    ]
    # Whole lists of Secrets are for nobody.
    secrets = {verb for group, resource, verb in allowed if (group, resource) == ("", "secrets")}
    assert secrets == ({"get"} if name == "everything" else set())


def test_namespaced_mode_asks_for_nothing_outside_its_namespaces() -> None:
    objects = render(VALUES["namespaced"])

    assert [role for role in operator_roles(objects) if role["kind"] == "ClusterRole"] == []
    assert of_kind(objects, "ClusterRoleBinding") == []
    namespaces = [role["metadata"]["namespace"] for role in of_kind(objects, "Role")]
    assert sorted(namespaces) == ["quire-system", "team-a", "team-b"]


def test_namespaced_mode_may_still_see_nodes() -> None:
    objects = render({"watchNamespaces": ["team-a"]})

    cluster = [role for role in operator_roles(objects) if role["kind"] == "ClusterRole"]
    assert grants(cluster) == {("", "nodes", verb) for verb in ("list", "watch")}


def test_every_binding_binds_the_operators_account_to_a_role_that_there_is() -> None:
    for name in VALUES:
        objects = render(VALUES[name])
        [account] = of_kind(objects, "ServiceAccount")
        roles = {
            (role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"])
            for role in operator_roles(objects)
        }
        bindings = of_kind(objects, "ClusterRoleBinding") + of_kind(objects, "RoleBinding")
        bound = {
            (item["roleRef"]["kind"], item["metadata"].get("namespace"), item["roleRef"]["name"])
            for item in bindings
        }
        assert bound == roles
        subjects = [subject for item in bindings for subject in item["subjects"]]
        assert {(subject["name"], subject["namespace"]) for subject in subjects} == {
            (account["metadata"]["name"], "quire-system")
        }


def test_people_get_deployments_with_the_clusters_own_roles() -> None:
    roles = {
        role["metadata"]["name"]: role
        for role in of_kind(render(), "ClusterRole")
        if any("/aggregate-to-" in label for label in role["metadata"]["labels"])
    }

    assert sorted(roles) == ["quire-admin", "quire-edit", "quire-view"]
    view = grants([roles["quire-view"]])
    assert {verb for _, _, verb in view} == {"get", "list", "watch"}
    edit = grants([roles["quire-edit"]])
    assert ("quire.dev", "llmdeployments/scale", "patch") in edit
    assert ("quire.dev", "llmdeployments/status", "patch") not in edit
