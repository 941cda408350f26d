"""Rules as Prometheus evaluates them: each alert fires in its trouble, and none does otherwise."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from alert_worlds import HEALTHY, NUM_MINUTES, QUIET, TROUBLES, Series, Trouble
from chart import CHART
from quire_monitoring.alerts import ALERT_GROUPS
from quire_monitoring.boards import BOARDS
from quire_monitoring.recordings import RECORDING_GROUPS
from quire_monitoring.rules import Alert, Severity

RULES = CHART / "files" / "rules.yaml"
ALERTS: list[Alert] = [alert for group in ALERT_GROUPS for alert in group.alerts]
FIRING = 'group by (alertname) (ALERTS{alertstate="firing"})'
LOOKS = (20, 60, 240)


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        message = "needs promtool, of the Debian package prometheus: run `make cluster-tools` once"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def run(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def world(name: str, different: Series, firing: dict[int, tuple[str, ...]]) -> dict[str, Any]:
    """One of promtool's tests: series, and the names of the alerts that fire, by minute."""
    series = {**HEALTHY, **different}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in series.items()],
        "promql_expr_test": [
            {
                "expr": FIRING,
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts
                ],
            }
            for minute, alerts in firing.items()
        ],
    }


def check(promtool: str, folder: Path, *worlds: dict[str, Any]) -> None:
    file = folder / "worlds.yaml"
    rules = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": list(worlds)}
    file.write_text(yaml.safe_dump(rules))
    run(promtool, "test", "rules", str(file))


def test_prometheus_takes_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", str(RULES))


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.alert)
def test_an_alert_fires_in_its_trouble_and_no_other_does(
    promtool: str, tmp_path: Path, trouble: Trouble
) -> None:
    firing = {trouble.at_minute: tuple(sorted((trouble.alert, *trouble.also)))}

    check(promtool, tmp_path, world(trouble.alert, trouble.series, firing))


@pytest.mark.parametrize("name", QUIET)
def test_nobody_is_woken_without_need(promtool: str, tmp_path: Path, name: str) -> None:
    check(promtool, tmp_path, world(name, QUIET[name], dict.fromkeys(LOOKS, ())))
    assert max(LOOKS) < NUM_MINUTES


def test_an_alert_waits_as_long_as_it_says(promtool: str, tmp_path: Path) -> None:
    """Before its time is over, the alert is pending."""
    patient = {alert.name: alert for alert in ALERTS if alert.lasting in ("10m", "15m", "30m")}
    worlds = [
        world(trouble.alert, trouble.series, {int(patient[trouble.alert].lasting[:-1]) - 1: ()})
        for trouble in TROUBLES
        if trouble.alert in patient and trouble.alert != "QuirePrefixHitsCollapsed"
    ]

    check(promtool, tmp_path, *worlds)
    assert len(worlds) > 10


def test_a_kernel_compiled_before_the_first_scrape_is_told_of_for_half_an_hour(
    promtool: str, tmp_path: Path
) -> None:
    name = "QuireKernelsCompiledLate"
    [trouble] = [trouble for trouble in TROUBLES if trouble.alert == name]
    compiled = dict.fromkeys(trouble.series, f"1+0x{NUM_MINUTES}")

    check(promtool, tmp_path, world(name, compiled, {5: (name,), 25: (name,), 35: ()}))


def test_every_alert_has_its_trouble() -> None:
    assert [trouble.alert for trouble in TROUBLES] == [alert.name for alert in ALERTS]


@pytest.mark.parametrize(
    ("name", "labels", "summary"),
    [
        (
            "QuireFirstTokenSlow",
            {"namespace": "prod", "quire_dev_deployment": "chat"},
            "prod/chat: one request of a hundred waits 9.95s for its first token",
        ),
        (
            "QuireKvCacheFull",
            {
                "namespace": "prod",
                "quire_dev_deployment": "chat",
                "pod": "chat-engine-0",
                "instance": "chat-engine-0:9090",
            },
            "prod/chat-engine-0 holds 99% of its KV cache in live requests",
        ),
        (
            "QuireRolloutStuck",
            {"namespace": "prod", "name": "chat", "reason": "ProgressDeadlineExceeded"},
            "prod/chat: a rollout has made no progress",
        ),
    ],
)
def test_what_an_alert_says_is_about_what_fires(
    promtool: str, tmp_path: Path, name: str, labels: dict[str, str], summary: str
) -> None:
    [trouble] = [trouble for trouble in TROUBLES if trouble.alert == name]
    [rule] = [alert.to_json() for alert in ALERTS if alert.name == name]
    expected = {
        "exp_labels": labels | rule["labels"],
        "exp_annotations": rule["annotations"] | {"summary": summary},
    }
    spoken = {
        "eval_time": f"{trouble.at_minute}m",
        "alertname": name,
        "exp_alerts": [expected],
    }

    check(promtool, tmp_path, world(name, trouble.series, {}) | {"alert_rule_test": [spoken]})


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_to_do(alert: Alert) -> None:
    page = (CHART / "RUNBOOK.md").read_text()

    assert re.fullmatch(r"Quire[A-Za-z]+", alert.name)
    assert f"### {alert.name}\n" in page
    assert alert.to_json()["annotations"]["runbook_url"].endswith(f"#{alert.name.lower()}")
    assert "$labels" in alert.summary or "operator" in alert.summary
    assert alert.meaning.endswith(".")
    assert any("`" in step or "Board" in step for step in alert.look)


def test_names_are_distinct_and_the_runbook_knows_no_others() -> None:
    records = [rule.to_json()["record"] for group in RECORDING_GROUPS for rule in group.rules]
    names = [alert.name for alert in ALERTS]
    sections = re.findall(r"^### (\w+)$", (CHART / "RUNBOOK.md").read_text(), re.MULTILINE)

    assert not [name for name, num in Counter(records + names).items() if num > 1]
    assert sections == names


def test_only_what_users_notice_wakes_somebody() -> None:
    critical = {alert.name for alert in ALERTS if alert.severity is Severity.CRITICAL}

    assert critical == {
        *("QuireErrorBudgetBurnFast", "QuireNoReadyReplicas", "QuireEngineStuck"),
        *("QuireRouterNoReplicas", "QuireOperatorDown"),
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_boards_and_panels_that_the_runbook_names_are_there(alert: Alert) -> None:
    titles = {board.title.removeprefix("Quire / "): board for board in BOARDS}
    for step in alert.look:
        marked = re.findall(r"\*([^*]+)\*", step)
        boards = [titles[word] for word in marked if word in titles]
        panels = {panel.title for board in boards for row in board.rows for panel in row.panels}
        every = {panel.title for board in BOARDS for row in board.rows for panel in row.panels}
        assert set(marked) - set(titles) <= (panels or every), step
