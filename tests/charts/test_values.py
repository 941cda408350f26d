"""What the chart refuses, and that its documentation is complete."""

import json

import pytest

from chart import CHART, HELM, ROOT, VALUES, render
from chart_tools.generated import GENERATORS, chart_files
from chart_tools.manifests import HelmError
from chart_tools.values import Value, ValuesError, read_values


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicaCount": 2}, "Additional property replicaCount is not allowed"),
        ({"operator": {"replica": 2}}, "Additional property replica is not allowed"),
        ({"operator": {"replicas": "two"}}, "operator.replicas: Invalid type"),
        ({"operator": {"replicas": -1}}, "operator.replicas: Must be greater than or equal to 0"),
        ({"operator": {"image": {"tag": "latest"}}}, "operator.image.tag"),
        ({"operator": {"image": {"digest": "sha256:1234"}}}, "operator.image.digest"),
        ({"engine": {"image": {"pullPolicy": "Sometimes"}}}, "engine.image.pullPolicy"),
        ({"operator": {"image": {"repository": ""}}}, "operator.image.repository"),
        ({"operator": {"logLevel": "loud"}}, "operator.logLevel"),
        ({"operator": {"resources": {"cpu": "1"}}}, "Additional property cpu is not allowed"),
        ({"operator": {"tolerations": [{"effect": "Never"}]}}, "operator.tolerations.0.effect"),
        ({"operator": {"podDisruptionBudget": {"maxUnavailable": "half"}}}, "maxUnavailable"),
        ({"watchNamespaces": "team-a"}, "watchNamespaces: Invalid type"),
        ({"watchNamespaces": ["Team_A"]}, "watchNamespaces.0"),
        ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
        ({"placement": {"nvlinkLabel": "nvlink"}}, "placement.nvlinkLabel"),
        ({"networkPolicy": {"apiServerCidrs": ["anywhere"]}}, "networkPolicy.apiServerCidrs.0"),
        ({"networkPolicy": {"apiServerPorts": [0]}}, "networkPolicy.apiServerPorts.0"),
        ({"metrics": {"podMonitor": {"interval": "often"}}}, "metrics.podMonitor.interval"),
        ({"global": {"imagePullSecrets": ["name"]}}, "global.imagePullSecrets.0"),
        ({"deployments": [{"name": "x"}]}, "spec is required"),
        ({"deployments": [{"name": "x" * 46, "spec": {"model": {}}}]}, "deployments.0.name"),
        ({"extraObjects": [{"kind": "Pod"}]}, "apiVersion is required"),
        (
            {"serviceAccount": {"create": False}},
            "serviceAccount.name: name the account to use",
        ),
        (
            {
                "watchNamespaces": ["team-a"],
                "deployments": [{"name": "x", "namespace": "b", "spec": {"model": {}}}],
            },
            "x lies in namespace b, which the operator does not serve",
        ),
        (
            {"placement": {"nodeFeatureRule": True}},
            "also set placement.nvlinkLabel=quire.dev/nvlink=true",
        ),
    ],
)
def test_a_mistake_is_refused_by_name(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)

    assert complaint in str(refused.value)


def test_a_parent_chart_may_have_globals_of_its_own() -> None:
    assert render({"global": {"storageClass": "fast"}})


def flatten(values: dict[str, object], prefix: tuple[str, ...] = ()) -> set[str]:
    names = set()
    for key, value in values.items():
        path = (*prefix, key)
        names.add(".".join(path))
        if isinstance(value, dict):
            names |= flatten(value, path)
    return names


def test_the_matrix_of_values_uses_every_value() -> None:
    documented = read_values((CHART / "values.yaml").read_text())
    used = set().union(*(flatten(values) for values in VALUES.values()))
    # Fixed where it would weaken the pods, or nothing but a size or a name.
    left = {
        "operator.image.registry",
        "operator.image.repository",
        "operator.image.tag",
        "operator.podDisruptionBudget.enabled",
        "operator.podSecurityContext",
        "operator.resources",
        "operator.securityContext",
        "serviceAccount.create",
        "rbac.create",
        "engine.image.registry",
        "engine.image.repository",
        "engine.image.digest",
        "router.image.repository",
        "router.image.digest",
    }

    names = {leaf.name for value in documented for leaf in value.leaves()}
    assert names - used - left == set()
    assert left <= names


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_what_is_generated_is_what_its_source_makes(generator: object) -> None:
    assert callable(generator)
    path, text = generator(chart_files(ROOT, helm=HELM))

    assert path.read_text() == text, f"{path.relative_to(ROOT)} is stale: run `make generate`"


def test_a_value_without_a_description_is_an_error() -> None:
    with pytest.raises(ValuesError, match=r"line 2: b has no `# --` line"):
        read_values("# -- About a.\nb: 1\n".replace("# -- About a.\n", "# About a.\n"))


def test_descriptions_may_take_lines_and_schemas_add_up() -> None:
    text = "# -- One,\n# two.\n# @schema minimum: 1\n# @schema maximum: 3\nsize: 2\n"

    [value] = read_values(text)

    assert value == Value(
        path=("size",), default=2, description="One, two.", schema={"minimum": 1, "maximum": 3}
    )


def test_every_property_of_the_schema_is_described_or_a_section() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def undescribed(node: dict[str, object], path: str) -> list[str]:
        found = []
        properties = node.get("properties")
        if not isinstance(properties, dict):
            return [] if "description" in node else [path]
        for name, child in properties.items():
            found += undescribed(child, f"{path}.{name}")
        return found

    assert undescribed(schema, "") == []
