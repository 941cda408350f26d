"""How the result of a serving benchmark is printed and kept; labels and fields as vLLM's."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from quire.bench.options import DatasetConfig, LoadConfig, ReportConfig, TargetConfig
from quire.bench.request import BenchResult
from quire.bench.statistics import Distribution, ServingFigures

WIDTH = 50
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def format_figures(figures: ServingFigures, load: LoadConfig, metrics: Sequence[str]) -> str:
    """Return the block that is printed at the end of a run."""
    rows: list[tuple[str, int | float | None]] = [
        ("Successful requests:", figures.completed),
        ("Failed requests:", figures.failed),
        ("Maximum request concurrency:", load.max_concurrency),
        ("Request rate configured (RPS):", _finite(load.request_rate)),
        ("Benchmark duration (s):", figures.duration_s),
        ("Total input tokens:", figures.total_input_tokens),
        ("Total generated tokens:", figures.total_output_tokens),
        ("Request throughput (req/s):", figures.request_throughput),
        ("Request goodput (req/s):", figures.request_goodput),
        ("Output token throughput (tok/s):", figures.output_throughput),
        ("Peak output token throughput (tok/s):", figures.max_output_tokens_per_s),
        ("Peak concurrent requests:", float(figures.max_concurrent_requests)),
        ("Total token throughput (tok/s):", figures.total_token_throughput),
    ]
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_row(label, value) for label, value in rows if value is not None]
    for metric in metrics:
        lines += _format_distribution(metric, figures.distributions[metric])
    return "\n".join([*lines, "=" * WIDTH])


def _format_distribution(metric: str, spread: Distribution) -> list[str]:
    short, title = TITLES[metric]
    return [
        title.center(WIDTH, "-"),
        _row(f"Mean {short} (ms):", spread.mean_ms),
        _row(f"Median {short} (ms):", spread.median_ms),
        *(_row(f"P{_word(p)} {short} (ms):", value) for p, value in spread.percentiles_ms),
    ]


def _row(label: str, value: float) -> str:
    return f"{label:<40} {value:<10}" if isinstance(value, int) else f"{label:<40} {value:<10.2f}"


def _word(percentile: float) -> str:
    return str(int(percentile)) if percentile == int(percentile) else str(percentile)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def result_json(
    figures: ServingFigures,
    results: Sequence[BenchResult],
    *,
    target: TargetConfig,
    load: LoadConfig,
    dataset: DatasetConfig,
    report: ReportConfig,
    model: str,
    now: datetime,
) -> dict[str, Any]:
    """Return what `--save-result` writes, field for field as vLLM's."""
    head = {
        "date": f"{now:%Y%m%d-%H%M%S}",
        "endpoint_type": target.backend,
        "backend": target.backend,
        "label": report.label,
        "model_id": model,
        "tokenizer_id": target.tokenizer or model,
        "num_prompts": dataset.num_prompts,
        **dict(item.split("=", 1) for item in report.metadata),
        "request_rate": load.request_rate if math.isfinite(load.request_rate) else "inf",
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
    }
    detail = _detail(results) if report.save_detailed else {}
    return {**head, **_ramp(load), **_figures(figures, report.metrics), **detail}


def _ramp(load: LoadConfig) -> dict[str, Any]:
    if load.ramp_up_strategy is None:
        return {}
    names = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
    return {name: getattr(load, name) for name in names}


def _figures(figures: ServingFigures, metrics: Sequence[str]) -> dict[str, Any]:
    fields = {
        "duration": figures.duration_s,
        "completed": figures.completed,
        "failed": figures.failed,
        "total_input_tokens": figures.total_input_tokens,
        "total_output_tokens": figures.total_output_tokens,
        "request_throughput": figures.request_throughput,
        "request_goodput": figures.request_goodput,
        "output_throughput": figures.output_throughput,
        "total_token_throughput": figures.total_token_throughput,
        "max_output_tokens_per_s": figures.max_output_tokens_per_s,
        "max_concurrent_requests": figures.max_concurrent_requests,
        "rtfx": 0.0,  # a figure of audio models, which readers of these files expect
    }
    for metric in metrics:
        spread = figures.distributions[metric]
        fields[f"mean_{metric}_ms"] = spread.mean_ms
        fields[f"median_{metric}_ms"] = spread.median_ms
        fields[f"std_{metric}_ms"] = spread.std_ms
        fields |= {f"p{_word(p)}_{metric}_ms": value for p, value in spread.percentiles_ms}
    return fields


def _detail(results: Sequence[BenchResult]) -> dict[str, list[Any]]:
    return {
        "input_lens": [result.prompt_len for result in results],
        "output_lens": [result.output_len for result in results],
        "ttfts": [result.ttft for result in results],
        "itls": [result.itl for result in results],
        "latencies": [result.latency for result in results],
        "start_times": [result.start_time for result in results],
        "generated_texts": [result.generated_text for result in results],
        "errors": [result.error for result in results],
    }


def result_path(
    report: ReportConfig, load: LoadConfig, target: TargetConfig, model: str, now: datetime
) -> Path:
    """Return where `--save-result` writes."""
    folder = Path(report.result_dir or ".")
    if report.result_filename:
        return folder / report.result_filename
    rate = load.request_rate if math.isfinite(load.request_rate) else "inf"
    concurrency = f"-concurrency{load.max_concurrency}" if load.max_concurrency else ""
    label = report.label or target.backend
    name = f"{label}-{rate}qps{concurrency}-{model.rsplit('/', 1)[-1]}-{now:%Y%m%d-%H%M%S}.json"
    return folder / name


def write_result(path: Path, result: Mapping[str, Any], *, append: bool) -> None:
    """Write or append one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.write(json.dumps(result) + "\n")
