"""Every dashboard shows what it says, with units and legends, wherever it is imported."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from chart import CHART
from quire_engine.server import metric_catalogue as engine_catalogue
from quire_monitoring.boards import BOARDS
from quire_operator.runtime import metric_catalogue as operator_catalogue
from quire_router import metric_catalogue as router_catalogue

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FILES = sorted((CHART / "files" / "dashboards").glob("*.json"))
GRAFANAS_OWN = {"__rate_interval", "__all"}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def board(request: pytest.FixtureRequest) -> Json:
    loaded: Json = json.loads(request.param.read_text())
    return loaded


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: Json) -> Iterator[tuple[str, Json]]:
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], target


def test_there_are_four_boards_and_no_leftovers() -> None:
    assert sorted(board.uid for board in BOARDS) == [path.stem for path in FILES]
    assert len(FILES) == 4


def test_a_board_has_a_fixed_address_and_says_what_it_is_for(board: Json) -> None:
    assert re.fullmatch("quire-[a-z]+", board["uid"])
    assert board["title"].startswith("Quire / ")
    assert board["description"]
    assert board["schemaVersion"] >= 39
    assert "id" not in board


def test_every_panel_has_title_help_unit_and_words_for_no_data(board: Json) -> None:
    for panel in panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]
        assert panel["targets"], panel["title"]


def test_every_query_names_its_series(board: Json) -> None:
    for title, target in queries(board):
        assert target["legendFormat"], title
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in target["expr"], f"{title}: no {label} in {target['expr']}"


def test_the_data_source_is_chosen_at_the_top_everywhere(board: Json) -> None:
    sources = [panel["datasource"] for panel in panels(board)]
    sources += [target["datasource"] for _, target in queries(board)]
    sources += [item["datasource"] for item in board["annotations"]["list"]]
    variables = board["templating"]["list"]
    sources += [item["datasource"] for item in variables if item["type"] == "query"]

    assert all(source == SOURCE for source in sources)
    assert variables[0]["name"] == "datasource"


def test_every_variable_is_used_and_every_one_used_is_there(board: Json) -> None:
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - GRAFANAS_OWN

    assert used == declared


def test_choices_start_at_all_and_match_series_without_the_label(board: Json) -> None:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["multi"], variable["name"]
            assert variable["allValue"] == ".*"
            assert variable["current"]["value"] == ["$__all"]


def test_rates_follow_the_zoom(board: Json) -> None:
    for title, target in queries(board):
        for window in re.findall(r"rate\(.*?\[(.+?)\]", target["expr"], re.DOTALL):
            assert window == "$__rate_interval", title


def test_every_series_is_one_that_a_component_declares(board: Json) -> None:
    catalogues = (engine_catalogue, router_catalogue, operator_catalogue)
    declared = {item.name for catalogue in catalogues for item in catalogue.CATALOGUE}
    for title, target in queries(board):
        for name in re.findall(
            r"\b(quire_(?!dev_)\w+|workqueue_\w+|controller_r\w+)", target["expr"]
        ):
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert {name, base} & declared, f"{title}: nobody declares {name}"


def test_averages_are_of_rates_never_of_totals(board: Json) -> None:
    for title, target in queries(board):
        for total in re.findall(r"\w+\([^()]*_(?:sum|count|total|bucket)\{", target["expr"]):
            assert total.startswith(("rate(", "increase(")), f"{title}: {total}"


def test_panels_fill_the_lines_and_never_overlap(board: Json) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        lines = range(place["y"], place["y"] + place["h"])
        own = set(itertools.product(columns, lines))
        assert max(columns) < 24
        assert not own & cells, panel["title"]
        cells |= own
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_boards_lead_to_each_other_with_the_choices_kept(board: Json) -> None:
    [link] = board["links"]

    assert link["tags"] == board["tags"] == ["quire"]
    assert link["includeVars"]
    assert link["keepTime"]


def test_alerts_and_rollouts_are_marked_on_every_board(board: Json) -> None:
    assert [item["name"] for item in board["annotations"]["list"]] == ["Firing alerts", "Rollouts"]
