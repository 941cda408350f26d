"""Grafana's dashboards, made of boards: variables, links, annotations, and their JSON."""

import json
from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from quire_monitoring.panels import Board, Row, Variable
from quire_monitoring.rendering import DATASOURCE, build_panel

TAG = "quire"
SCHEMA_VERSION = 39
"""Of Grafana 10.4, the oldest that is meant to show the boards as they are."""
QUANTILES = ("0.5", "0.9", "0.95", "0.99")
DEFAULT_QUANTILE = "0.95"
ALERTS_QUERY = 'ALERTS{alertstate="firing",alertname=~"Quire.*"}'
ROLLOUTS_QUERY = """\
quire_llmdeployment_replicas{state="updated"}
  < on (namespace, name) quire_llmdeployment_replicas{state="current"}"""


def dashboard_json(board: Board) -> str:
    """Return the dashboard as Grafana imports it, keys in order."""
    built = build_dashboard(board).build()
    built.schema_version = SCHEMA_VERSION
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def build_dashboard(board: Board) -> builders.Dashboard:
    """Return Grafana's dashboard."""
    builder = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.help)
        .tags([TAG])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(_links())
    )
    for variable in _variables(board):
        builder = builder.with_variable(variable)
    for annotation in _annotations():
        builder = builder.annotation(annotation)
    numbers = iter(range(1, 1000))
    for row in board.rows:
        _add_row(builder, row, numbers)
    return builder


def _add_row(builder: builders.Dashboard, row: Row, numbers: Iterator[int]) -> None:
    builder.with_row(builders.Row(row.title).id(next(numbers)))
    for panel in row.panels:
        builder.with_panel(build_panel(panel, next(numbers)))


def _links() -> builders.DashboardLink:
    return (
        builders.DashboardLink("Quire")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )


def _variables(board: Board) -> Iterator[Builder[dashboard.VariableModel]]:
    yield (
        builders.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .multi(False)
        .include_all(False)
    )
    for variable in board.variables:
        yield _query_variable(variable)
    if board.has_quantile:
        yield _quantile_variable()
    for name, (label, default) in board.texts.items():
        yield (
            builders.TextBoxVariable(name)
            .label(label)
            .default_value(default)
            .current(dashboard.VariableOption(selected=True, text=default, value=default))
        )


def _query_variable(variable: Variable) -> builders.QueryVariable:
    # "All" is a pattern of its own: it also matches series that lack the label.
    return (
        builders.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(DATASOURCE)
        .query({"query": variable.query, "refId": variable.name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _quantile_variable() -> builders.CustomVariable:
    options = [
        dashboard.VariableOption(selected=value == DEFAULT_QUANTILE, text=value, value=value)
        for value in QUANTILES
    ]
    return (
        builders.CustomVariable("quantile")
        .label("Quantile")
        .values(",".join(QUANTILES))
        .options(options)
        .current(options[QUANTILES.index(DEFAULT_QUANTILE)])
        .multi(False)
        .include_all(False)
    )


def _annotations() -> Iterator[builders.AnnotationQuery]:
    for name, query, color in (
        ("Firing alerts", ALERTS_QUERY, "red"),
        ("Rollouts", ROLLOUTS_QUERY, "blue"),
    ):
        yield (
            builders.AnnotationQuery()
            .name(name)
            .datasource(DATASOURCE)
            .enable(True)
            .hide(False)
            .icon_color(color)
            .expr(query)
        )
