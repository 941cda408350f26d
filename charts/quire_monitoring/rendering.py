"""Grafana's panels, made of ours: how each kind looks is decided here, once."""

from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import (
    common as common_builders,
    dashboard as dashboard_builders,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard, heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from quire_monitoring.panels import Heat, Limits, Lines, Number, Panel, States, Table

DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
ROW_HEIGHT = 8
STAT_HEIGHT = 4


class _PanelBuilder(Protocol):
    """What the builders of all kinds of panels have in common."""

    def build(self) -> dashboard.Panel: ...
    def id(self, id_val: int, /) -> Self: ...
    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def datasource(self, datasource: dashboard.DataSourceRef, /) -> Self: ...
    def height(self, h: int, /) -> Self: ...
    def span(self, w: int, /) -> Self: ...
    def unit(self, unit: str, /) -> Self: ...
    def no_value(self, no_value: str, /) -> Self: ...
    def with_target(self, target: prometheus.Dataquery, /) -> Self: ...
    def thresholds(self, thresholds: dashboard_builders.ThresholdsConfig, /) -> Self: ...


B = TypeVar("B", bound=_PanelBuilder)


def build_panel(panel: Panel, number: int) -> Builder[dashboard.Panel]:
    """Return Grafana's panel; the number is its id on the board.

    Raises:
        TypeError: nothing is known of how this kind of panel looks.
    """
    match panel:
        case Lines():
            return _filled(_lines(panel), panel, number)
        case Number():
            return _filled(_number(), panel, number, height=STAT_HEIGHT)
        case Heat():
            return _filled(_heat(panel), panel, number, PromQueryFormat.HEATMAP)
        case States():
            return _filled(_states(), panel, number)
        case Table():
            return _filled(_table(panel), panel, number, PromQueryFormat.TABLE)
        case _:
            raise TypeError(f"{type(panel).__name__} is no kind of panel that can be shown")


def _filled(
    builder: B,
    panel: Panel,
    number: int,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
    height: int = ROW_HEIGHT,
) -> B:
    builder = (
        builder.id(number)
        .title(panel.title)
        .description(panel.help)
        .datasource(DATASOURCE)
        .height(height)
        .span(panel.width)
        .unit(panel.unit)
        .no_value(panel.no_data)
        .thresholds(_thresholds(panel.limits))
    )
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + index)).format(form)
        target = target.expr(query.expr).legend_format(query.legend).datasource(DATASOURCE)
        # A table shows the last values; everything else what was.
        target = target.instant() if form is PromQueryFormat.TABLE else target.range()
        builder = builder.with_target(target)
    return builder


def _thresholds(limits: Limits) -> dashboard_builders.ThresholdsConfig:
    steps = [dashboard.Threshold(value=None, color="green")]
    steps += [dashboard.Threshold(value=value, color=color) for value, color in limits]
    config = dashboard_builders.ThresholdsConfig()
    return config.mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _lines(panel: Lines) -> timeseries.Panel:
    stacking = common.StackingMode.NORMAL if panel.is_stacked else common.StackingMode.NONE
    builder = (
        timeseries.Panel()
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .line_width(1)
        .fill_opacity(30 if panel.is_stacked else 0)
        .show_points(common.VisibilityMode.NEVER)
        .stacking(common_builders.StackingConfig().mode(stacking))
        .min(0)
    )
    if panel.max_value is not None:
        builder = builder.max(panel.max_value)
    if panel.limits:
        style = common_builders.GraphThresholdsStyleConfig()
        builder = builder.thresholds_style(style.mode(common.GraphTresholdsStyleMode.DASHED))
    return builder


def _number() -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(
            common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)
        )
    )


def _heat(panel: Heat) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_values(heatmap.CellValues().unit("reqps"))
        .show_legend()
    )


def _states() -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
    )


def _table(panel: Table) -> table.Panel:
    names = {f"Value #{chr(ord('A') + i)}": query.legend for i, query in enumerate(panel.queries)}
    # One query's value has no letter.
    names |= {"Value": panel.queries[0].legend} | dict(panel.renamed)
    hidden = dict.fromkeys(("Time", "__name__", *panel.hidden), True)
    builder = (
        table.Panel()
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            dashboard.DataTransformerConfig(
                id_val="organize", options={"excludeByName": hidden, "renameByName": names}
            )
        )
    )
    for column, unit in panel.units.items():
        builder = builder.override_by_name(
            column, [dashboard.DynamicConfigValue(id_val="unit", value=unit)]
        )
    return builder
