"""The HTML page of a run: everything in one file, which asks nobody for anything."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from quire.bench.plot.charts import latency_chart, throughput_chart, waiting_chart
from quire.bench.plot.data import Latencies, OverTime, first_tokens, latencies, over_time
from quire.bench.plot.svg import number
from quire.bench.request import BenchResult
from quire.bench.statistics import ServingFigures

MAX_ERRORS = 5
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    figures: ServingFigures,
    results: Sequence[BenchResult],
    *,
    settings: Mapping[str, str],
    percentiles: Sequence[float] = (),
) -> str:
    """Return the page of a run; `settings` say what was run."""
    spreads = latencies(results, percentiles)
    run = over_time(results) if figures.completed else None
    parts = [_head(settings), _tiles(figures)]
    if run is None:
        parts.append('<p class="bad">No request succeeded: there is nothing to plot.</p>')
    else:
        parts += [_latency_section(spreads), _time_section(run, results)]
    parts += [_errors(results), _settings(settings), _data(spreads, run)]
    style = (files("quire.bench.plot") / "page.css").read_text()
    title = escape(settings.get("Model", "a model"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · quire bench serve</title>\n"
        # Without one, browsers ask for /favicon.ico.
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(settings: Mapping[str, str]) -> str:
    quiet = " · ".join(escape(settings[name]) for name in ("Server", "Date") if name in settings)
    return f'<h1>{escape(settings.get("Model", ""))}</h1>\n<p class="quiet">{quiet}</p>'


def _tiles(figures: ServingFigures) -> str:
    tiles = [
        ("Requests", f"{figures.completed:,}", f"{figures.failed:,} failed"),
        ("Generated tokens", f"{number(figures.output_throughput)}", "tok/s"),
        ("All tokens", f"{number(figures.total_token_throughput)}", "tok/s"),
        ("Requests", f"{number(figures.request_throughput)}", "per s"),
        ("In flight", f"{figures.max_concurrent_requests:,}", "at most"),
        ("Duration", f"{number(figures.duration_s)}", "s"),
    ]
    if figures.request_goodput is not None:
        tiles.append(("Within limits", number(figures.request_goodput), "per s"))
    cells = [
        f"<div><dt>{title}</dt><dd>{value} <small>{unit}</small></dd></div>"
        for title, value, unit in tiles
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _latency_section(spreads: Sequence[Latencies]) -> str:
    charts = [
        f"<figure><figcaption>{escape(each.title)}</figcaption>{latency_chart(each)}</figure>"
        for each in spreads
    ]
    return (
        f'<h2>Latency</h2>\n<div class="charts">{"".join(charts)}</div>\n{_latency_table(spreads)}'
    )


def _latency_table(spreads: Sequence[Latencies]) -> str:
    percents = spreads[0].percentiles
    heads = ["Milliseconds", "Mean", *(f"p{percent:g}" for percent in percents), "Max", "Number"]
    rows = [
        [
            number(float(each.samples_ms.mean())),
            *(number(each.percentile(percent)) for percent in percents),
            number(float(each.samples_ms[-1])),
            f"{len(each.samples_ms):,} {each.unit}",
        ]
        for each in spreads
    ]
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(each.title)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for each, row in zip(spreads, rows, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _time_section(run: OverTime, results: Sequence[BenchResult]) -> str:
    charts = (
        f"<figure><figcaption>Throughput</figcaption>{throughput_chart(run)}</figure>"
        f"<figure><figcaption>Load</figcaption>{waiting_chart(run, first_tokens(results))}</figure>"
    )
    return f'<h2>Over time</h2>\n<div class="charts">{charts}</div>'


def _errors(results: Sequence[BenchResult]) -> str:
    errors = sorted({result.error for result in results if result.error})
    if not errors:
        return ""
    items = "".join(f"<li>{escape(error)}</li>" for error in errors[:MAX_ERRORS])
    return f'<h2>What failed</h2>\n<ul class="bad">{items}</ul>'


def _settings(settings: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in settings.items()
    )
    return (
        f'<h2>What was run</h2>\n<div class="scroll"><table class="settings">{rows}</table></div>'
    )


def _data(spreads: Sequence[Latencies], run: OverTime | None) -> str:
    """Return what is drawn as JSON, for whoever wants to draw it otherwise."""
    data: dict[str, Any] = {"latencies": {each.name: _spread(each) for each in spreads}}
    if run is not None:
        data["over_time"] = {
            "edges_s": run.edges_s.tolist(),
            "tokens_per_s": run.tokens_per_s.tolist(),
            "requests_per_s": run.requests_per_s.tolist(),
            "in_flight": run.in_flight.tolist(),
        }
    # A script's text ends at the first "</", whatever the type.
    text = json.dumps(data).replace("</", "<\\/")
    return f'<script type="application/json" id="data">{text}</script>'


def _spread(spread: Latencies) -> dict[str, Any]:
    edges, counts = spread.histogram()
    return {
        "num": len(spread.samples_ms),
        "mean_ms": float(spread.samples_ms.mean()),
        "max_ms": float(spread.samples_ms[-1]),
        "percentiles_ms": {f"{p:g}": spread.percentile(p) for p in spread.percentiles},
        "histogram": {"edges_ms": edges.tolist(), "counts": counts.tolist()},
    }
