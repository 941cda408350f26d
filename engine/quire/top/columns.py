"""Rows of columns, as many as a terminal is wide."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import set_cell_size
from rich.text import Text

RowT = TypeVar("RowT")

GAP = 2


def _plain(_row: object) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[RowT]):
    """One column. Where not all fit, those of the highest rank are left out."""

    title: str
    """May hold {}, for the width."""
    rank: int
    least: int
    """Width that it needs."""
    most: int
    """Width that it makes use of."""
    show: Callable[[RowT, int], str]
    """Writes a row's cell in a width."""
    style: Callable[[RowT], str] = _plain
    is_text: bool = False
    """Texts begin on the left, numbers end on the right."""


def fit(columns: Sequence[Column[RowT]], width: int) -> list[tuple[Column[RowT], int]]:
    """Return the columns that fit, with their widths."""
    left = width + GAP
    widths: dict[str, int] = {}
    by_rank = sorted(columns, key=lambda column: column.rank)
    for column in by_rank:
        if column.least + GAP > left:
            break
        widths[column.title] = column.least
        left -= column.least + GAP
    _widen(by_rank[: len(widths)], widths, left)
    return [(column, widths[column.title]) for column in columns if column.title in widths]


def _widen(chosen: Sequence[Column[RowT]], widths: dict[str, int], left: int) -> None:
    """Share out the width that is left, in turns: the first column must not take it all."""
    while left > 0:
        narrow = [column for column in chosen if widths[column.title] < column.most]
        if not narrow:
            return
        for column in narrow[:left]:
            widths[column.title] += 1
            left -= 1


def heads(columns: Iterable[tuple[Column[RowT], int]]) -> Text:
    """Return the line of titles."""
    cells = [
        _cell(column.title.format(width), width, is_text=column.is_text)
        for column, width in columns
    ]
    return Text((" " * GAP).join(cells), style="bold")


def line(row: RowT, columns: Iterable[tuple[Column[RowT], int]]) -> Text:
    """Return the line of a row."""
    cells = [
        Text(_cell(column.show(row, width), width, is_text=column.is_text), style=column.style(row))
        for column, width in columns
    ]
    return Text(" " * GAP).join(cells)


def _cell(text: str, width: int, *, is_text: bool) -> str:
    if len(text) < width and not is_text:
        text = text.rjust(width)
    return set_cell_size(text, width)
