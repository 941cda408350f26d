"""Which files are generated, and from what. In order: each may read what those before it made."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from chart_tools.api_page import api_page
from chart_tools.manifests import install_manifest, part_manifest
from chart_tools.readme import fill_readme
from chart_tools.schema import build_schema
from chart_tools.values import read_values
from quire_monitoring.alerts import ALERT_GROUPS
from quire_monitoring.boards import BOARDS
from quire_monitoring.dashboards import dashboard_json
from quire_monitoring.panels import Board
from quire_monitoring.recordings import RECORDING_GROUPS
from quire_monitoring.rules import rules_file
from quire_monitoring.runbook import runbook


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartFiles:
    """Where the chart and what is made of it lie."""

    helm: Path
    crd_source: Path
    chart: Path
    manifests: Path


Generator = Callable[[ChartFiles], tuple[Path, str]]


def chart_files(root: Path, *, helm: Path) -> ChartFiles:
    """Return the places below the repository's root."""
    return ChartFiles(
        helm=helm,
        crd_source=root / "crds" / "llmdeployments.quire.dev.yaml",
        chart=root / "charts" / "quire",
        manifests=root / "manifests",
    )


def crd_copy(files: ChartFiles) -> tuple[Path, str]:
    """Copy the CRD into the chart: helm reads only files of its own."""
    return files.chart / "files" / files.crd_source.name, files.crd_source.read_text()


def values_schema(files: ChartFiles) -> tuple[Path, str]:
    """Make values.schema.json from the documented values."""
    schema = build_schema(read_values((files.chart / "values.yaml").read_text()))
    return files.chart / "values.schema.json", json.dumps(schema, indent=2) + "\n"


def readme(files: ChartFiles) -> tuple[Path, str]:
    """Make the README's table from the documented values."""
    path = files.chart / "README.md"
    values = read_values((files.chart / "values.yaml").read_text())
    return path, fill_readme(path.read_text(), values)


def install(files: ChartFiles) -> tuple[Path, str]:
    """Make install.yaml from the chart's defaults."""
    return files.manifests / "install.yaml", install_manifest(files.helm, files.chart)


def api_reference(files: ChartFiles) -> tuple[Path, str]:
    """Make the page about the API from the CRD."""
    source = files.crd_source
    return source.parent / "README.md", api_page(yaml.safe_load(source.read_text()), source.name)


def dashboard(board: Board) -> Generator:
    """Return the generator of one Grafana dashboard."""

    def generate(files: ChartFiles) -> tuple[Path, str]:
        return files.chart / "files" / "dashboards" / f"{board.uid}.json", dashboard_json(board)

    generate.__name__ = f"dashboard_{board.uid}"
    return generate


def rules(files: ChartFiles) -> tuple[Path, str]:
    """Make the rule file, which Prometheus reads as it is."""
    text = yaml.safe_dump(
        rules_file((*RECORDING_GROUPS, *ALERT_GROUPS)), sort_keys=False, width=110
    )
    return files.chart / "files" / "rules.yaml", text


def alerts_runbook(files: ChartFiles) -> tuple[Path, str]:
    """Make the runbook out of the alerts."""
    return files.chart / "RUNBOOK.md", runbook(ALERT_GROUPS)


def plain_rules(files: ChartFiles) -> tuple[Path, str]:
    """Make the PrometheusRule without Helm."""
    api = "--api-versions=monitoring.coreos.com/v1/PrometheusRule"
    text = part_manifest(files.helm, files.chart, "prometheus-rule.yaml", api)
    return files.manifests / "monitoring" / "prometheus-rule.yaml", text


def plain_dashboards(files: ChartFiles) -> tuple[Path, str]:
    """Make the dashboards' ConfigMaps without Helm."""
    flag = "--set=metrics.dashboards.enabled=true"
    text = part_manifest(files.helm, files.chart, "dashboards.yaml", flag)
    return files.manifests / "monitoring" / "dashboards.yaml", text


GENERATORS: tuple[Generator, ...] = (
    crd_copy,
    api_reference,
    values_schema,
    readme,
    *map(dashboard, BOARDS),
    rules,
    alerts_runbook,
    install,
    plain_rules,
    plain_dashboards,
)
