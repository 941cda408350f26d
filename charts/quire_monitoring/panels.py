"""Panels as data: what a board shows. `rendering` knows how each kind looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FULL_WIDTH = 24

Limits = Sequence[tuple[float, str]]
"""(from which value on, colour); below the first it is green."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and the name of each series that it returns."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What every kind of panel has."""

    title: str
    help: str
    queries: Sequence[Query]
    unit: str
    limits: Limits = ()
    width: int = 8
    no_data: str = "no data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Panel):
    """Values over time."""

    is_stacked: bool = False
    max_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Panel):
    """One value, with its past behind it."""

    width: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat(Panel):
    """A histogram over time; its one query returns buckets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States(Panel):
    """Which state something was in, over time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Panel):
    """The last values, one row for each set of labels, one column for each query."""

    hidden: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    """Units of columns, by their titles."""
    width: int = FULL_WIDTH


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a title, in lines of 24 columns."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of a board, of label values that there are."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    help: str
    rows: Sequence[Row]
    variables: Sequence[Variable]
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Variables that are typed in: name -> (label, default)."""
    has_quantile: bool = True
