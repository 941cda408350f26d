"""Writes the page of a run, with what was asked of whom."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from quire.bench.options import DatasetConfig, LoadConfig, ReportConfig, TargetConfig
from quire.bench.plot.page import page
from quire.bench.request import BenchResult
from quire.bench.statistics import ServingFigures


def write_plot(
    path: Path,
    figures: ServingFigures,
    results: Sequence[BenchResult],
    *,
    target: TargetConfig,
    load: LoadConfig,
    dataset: DatasetConfig,
    report: ReportConfig,
    model: str,
    now: datetime,
) -> None:
    """Write one HTML file."""
    settings = {
        "Model": model,
        "Server": target.url + target.path,
        "Date": f"{now:%Y-%m-%d %H:%M}",
        "Prompts": _prompts(dataset),
        "Arrival": _arrival(load),
        **({"Limits": ", ".join(report.goodput)} if report.goodput else {}),
        **({"Label": report.label} if report.label else {}),
        **dict(item.split("=", 1) for item in report.metadata),
    }
    html = page(figures, results, settings=settings, percentiles=report.percentiles)
    path.write_text(html, encoding="utf-8")


def _prompts(dataset: DatasetConfig) -> str:
    what = f"{dataset.num_prompts:,} of {dataset.dataset_name}"
    if dataset.dataset_name != "random":
        return what
    input_len = dataset.input_len or dataset.random_input_len
    output_len = dataset.output_len or dataset.random_output_len
    return f"{what}, {input_len:,} tokens in, {output_len:,} out"


def _arrival(load: LoadConfig) -> str:
    if load.ramp_up_strategy is not None:
        how = f"{load.ramp_up_start_rps:g} to {load.ramp_up_end_rps:g} requests a second"
    elif math.isfinite(load.request_rate):
        how = f"{load.request_rate:g} requests a second"
    else:
        how = "all at once"
    limit = load.max_concurrency
    return f"{how}, at most {limit:,} in flight" if limit else how
