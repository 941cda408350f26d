"""The runbook: a section for each alert, made of its declaration."""

from collections.abc import Iterable, Iterator

from quire_monitoring.rules import Alert, Group

_HEAD = """\
# Runbook

What each alert means, what to look at and what to type. `make generate` makes this page from the
alerts' own declarations. NAMESPACE, NAME (of the LLMDeployment) and POD are in the alert's labels.

**critical**: users notice, wake somebody. **warning**: users will, look in working hours. The
boards are the Grafana dashboards of the chart (`metrics.dashboards.enabled`). Limits that suit no
model equally are values of the chart: `metrics.rules.thresholds`.
"""
_TITLES = {
    "quire-alerts-requests": "What users get",
    "quire-alerts-deployments": "Deployments",
    "quire-alerts-engines": "Engines",
    "quire-alerts-routers": "Routers",
    "quire-alerts-operator": "Operator",
}


def runbook(groups: Iterable[Group]) -> str:
    """Return the page in Markdown."""
    return "\n".join([_HEAD, *(_section(group) for group in groups)])


def _section(group: Group) -> str:
    return "\n".join([f"## {_TITLES[group.name]}\n", *map(_alert, group.alerts)])


def _alert(alert: Alert) -> str:
    return "\n".join(_lines(alert))


def _lines(alert: Alert) -> Iterator[str]:
    lasting = "at once" if alert.lasting == "0m" else f"after {alert.lasting}"
    yield f"### {alert.name}\n"
    yield f"**{alert.severity}**, {lasting}. {alert.meaning}\n"
    yield from (f"{number}. {step}" for number, step in enumerate(alert.look, start=1))
    yield f"\n```promql\n{alert.expr}\n```\n"
