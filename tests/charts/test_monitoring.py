"""What the chart installs for Prometheus, Grafana and autoscalers."""

import json
from typing import Any

import pytest
import yaml

from chart import ALL_APIS, CHART, ROOT, VALUES, of_kind, render
from chart_tools.manifests import HelmError, Manifest
from quire_monitoring.alerts import ALERT_GROUPS
from quire_monitoring.recordings import RECORDING_GROUPS, THRESHOLDS

RULE_API = ("monitoring.coreos.com/v1/PrometheusRule",)


def rules_of(manifests: list[Manifest]) -> dict[str, dict[str, Any]]:
    [installed] = of_kind(manifests, "PrometheusRule")
    rules = [rule for group in installed["spec"]["groups"] for rule in group["rules"]]
    return {rule.get("alert") or rule["record"]: rule for rule in rules}


def config_maps(values: dict[str, Any]) -> list[Manifest]:
    return of_kind(render(values), "ConfigMap")


def test_the_rule_is_the_rule_file() -> None:
    file = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())

    installed = rules_of(render(apis=RULE_API))

    expected = {
        rule.get("alert") or rule["record"]: rule
        for group in file["groups"]
        for rule in group["rules"]
    }
    assert set(installed) == set(expected)
    for name, rule in installed.items():
        if not name.startswith("quire:threshold:"):
            assert rule == expected[name]


def test_thresholds_of_the_values_are_those_of_the_rule_file_unless_set() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["metrics"]["rules"]["thresholds"] == THRESHOLDS
    file = {rule.record: rule.expr for rule in RECORDING_GROUPS[0].rules}  # type: ignore[union-attr]
    installed = rules_of(render(apis=RULE_API))
    assert {name: installed[name]["expr"] for name in file} == file

    changed = rules_of(render(VALUES["everything"], apis=ALL_APIS))

    assert changed["quire:threshold:first_token_seconds"]["expr"] == "vector(2.5)"
    assert changed["quire:threshold:error_budget"]["expr"] == "vector(0.01)"


def test_alerts_are_labelled_led_elsewhere_and_left_out_as_told() -> None:
    rules = rules_of(render(VALUES["everything"], apis=ALL_APIS))

    assert "QuireLoadSkewed" not in rules
    assert rules["QuireOperatorDown"]["labels"] == {"severity": "critical", "team": "platform"}
    url = rules["QuireOperatorDown"]["annotations"]["runbook_url"]
    assert url == "https://wiki.test/quire#quireoperatordown"


def test_an_alert_that_is_not_there_cannot_be_left_out() -> None:
    values = {"metrics": {"rules": {"disabled": ["QuireNoSuchAlert"]}}}

    with pytest.raises(HelmError, match="no alert is called QuireNoSuchAlert"):
        render(values)


def test_each_part_has_its_switch() -> None:
    assert of_kind(render(), "PrometheusRule") == []
    off = {"metrics": {"rules": {"enabled": False}}}
    assert of_kind(render(off, apis=RULE_API), "PrometheusRule") == []
    assert config_maps({}) == []


def test_dashboards_come_as_config_maps_that_a_sidecar_finds() -> None:
    made = config_maps({"metrics": {"dashboards": {"enabled": True}}})

    assert len(made) == 4
    for item in made:
        # Sidecars compare with the text "1".
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        [(name, text)] = item["data"].items()
        source = (CHART / "files" / "dashboards" / name).read_text()
        assert json.loads(text) == json.loads(source)
        assert len(text) < 2**20 // 2


def test_dashboards_go_where_grafana_looks() -> None:
    for item in config_maps({"metrics": VALUES["everything"]["metrics"]}):
        assert item["metadata"]["namespace"] == "monitoring"
        assert item["metadata"]["labels"]["grafana_dashboard"] == "quire"
        assert item["metadata"]["annotations"] == {"grafana_folder": "LLM"}


def test_the_operators_series_keep_the_namespaces_that_they_are_about() -> None:
    [monitor] = of_kind(render(apis=ALL_APIS), "PodMonitor")

    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True


def test_every_manifest_without_helm_is_the_charts() -> None:
    folder = ROOT / "manifests" / "monitoring"
    resources = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    objects = [
        item for name in resources for item in yaml.safe_load_all((folder / name).read_text())
    ]

    assert [item["kind"] for item in objects] == ["PrometheusRule", *["ConfigMap"] * 4]
    alerts = [alert for group in ALERT_GROUPS for alert in group.alerts]
    rules = [rule for group in objects[0]["spec"]["groups"] for rule in group["rules"]]
    assert len([rule for rule in rules if "alert" in rule]) == len(alerts)
