"""The tables of metrics in the READMEs of engine, router and operator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from chart_tools.marked import replace_marked
from quire_engine.server import metric_catalogue as engine
from quire_operator.runtime import metric_catalogue as operator
from quire_router import metric_catalogue as router

BEGIN = "<!-- metrics: begin, by `make generate` from metric_catalogue.py -->"
END = "<!-- metrics: end -->"
UNITS = ("seconds", "ratio", "bytes", "tokens", "blocks")


class Declared(Protocol):
    """What each component's declarations have in common; they share no code."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> tuple[str, ...]: ...
    @property
    def buckets(self) -> tuple[float, ...]: ...


CATALOGUES: dict[str, Sequence[Declared]] = {
    "engine": engine.CATALOGUE,
    "router": router.CATALOGUE,
    "operator": operator.CATALOGUE,
}
"""By the folder whose README tells of them."""


def metric_readmes(root: Path) -> list[tuple[Path, str]]:
    """Return each README with its table made anew."""
    paths = {root / folder / "README.md": found for folder, found in CATALOGUES.items()}
    return [(path, fill(path.read_text(), found)) for path, found in paths.items()]


def fill(readme: str, catalogue: Sequence[Declared]) -> str:
    """Return the README with the table between its two marks made anew."""
    return replace_marked(readme, BEGIN, END, table(catalogue))


def table(catalogue: Sequence[Declared]) -> str:
    """Return a Markdown table, one row per metric."""
    rows = [
        f"| `{declared.name}` | {_type(declared)} | {_labels(declared)} | {_cell(declared.help)} |"
        for declared in catalogue
    ]
    return "\n".join(["| Metric | Type | Labels | |", "|---|---|---|---|", *rows])


def unit(name: str) -> str:
    """Return the unit that a name ends in; empty for counts."""
    last = name.removesuffix("_total").rsplit("_", 1)[-1]
    return last if last in UNITS else ""


def _type(declared: Declared) -> str:
    parts = [declared.kind, unit(declared.name)]
    if declared.buckets:
        low, high = f"{declared.buckets[0]:g}", f"{declared.buckets[-1]:g}"
        parts.append(f"{low} to {high} in {len(declared.buckets)} buckets")
    return ", ".join(part for part in parts if part)


def _labels(declared: Declared) -> str:
    if not declared.values:
        return ", ".join(declared.labels)
    *others, last = declared.labels
    return ", ".join([*others, f"{last}: {' '.join(declared.values)}"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
