"""Prometheus rules as data: what is recorded, what raises an alert, and how a file holds them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

RUNBOOK_URL = "https://github.com/quire-dev/quire/blob/main/charts/quire/RUNBOOK.md"

Json = dict[str, Any]


class Severity(StrEnum):
    """Who is to hear of an alert."""

    CRITICAL = "critical"
    """Users notice: wake somebody."""
    WARNING = "warning"
    """Users will, or some already do: look in working hours."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that is computed once and read often."""

    record: str
    expr: str

    def to_json(self) -> Json:
        return {"record": self.record, "expr": self.expr}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert, with its section of the runbook."""

    name: str
    severity: Severity
    expr: str
    lasting: str
    """How long the expression must hold, as Prometheus writes durations."""
    summary: str
    """One line, with the labels that say what it is about."""
    meaning: str
    """What it means for users, and what usually is behind it."""
    look: Sequence[str]
    """What to look at and type, in order."""

    def to_json(self) -> Json:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity.value},
            "annotations": {
                "summary": self.summary,
                "description": self.meaning,
                "runbook_url": f"{RUNBOOK_URL}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: Sequence[Recording | Alert]

    @property
    def alerts(self) -> list[Alert]:
        """The alerts among the rules."""
        return [rule for rule in self.rules if isinstance(rule, Alert)]

    def to_json(self) -> Json:
        return {"name": self.name, "rules": [rule.to_json() for rule in self.rules]}


def rules_file(groups: Iterable[Group]) -> Json:
    """Return what a rule file of Prometheus holds; the spec of a PrometheusRule is the same."""
    return {"groups": [group.to_json() for group in groups]}
