"""The table of values in the chart's README."""

import json
from collections.abc import Sequence

from chart_tools.marked import replace_marked
from chart_tools.values import Value

BEGIN = "<!-- values: begin, by `make generate` from values.yaml -->"
END = "<!-- values: end -->"


def fill_readme(readme: str, values: Sequence[Value]) -> str:
    """Return the README with the table between its two marks made anew."""
    return replace_marked(readme, BEGIN, END, values_table(values))


def values_table(values: Sequence[Value]) -> str:
    """Return a Markdown table of every described value."""
    rows = [
        f"| `{leaf.name}` | `{json.dumps(leaf.default)}` | {_cell(leaf.description)} |"
        for value in values
        for leaf in value.leaves()
    ]
    return "\n".join(["| Value | Default | |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
