"""Figures of a serving benchmark, from the results of its requests. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quire.bench.request import BenchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Spread of one metric over requests (over arrivals of tokens for itl), in milliseconds."""

    mean_ms: float
    median_ms: float
    std_ms: float
    percentiles_ms: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingFigures:
    """All figures of one run; rates are per second of `duration_s`."""

    duration_s: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    num_good: int | None
    """Requests within all goodput limits; None without limits."""
    distributions: Mapping[str, Distribution]

    @property
    def request_throughput(self) -> float:
        return self.completed / self.duration_s

    @property
    def output_throughput(self) -> float:
        return self.total_output_tokens / self.duration_s

    @property
    def total_token_throughput(self) -> float:
        return (self.total_input_tokens + self.total_output_tokens) / self.duration_s

    @property
    def request_goodput(self) -> float | None:
        return None if self.num_good is None else self.num_good / self.duration_s


def summarize(
    results: Sequence[BenchResult],
    duration_s: float,
    *,
    percentiles: Sequence[float] = (99.0,),
    limits_ms: Mapping[str, float] | None = None,
) -> ServingFigures:
    """Compute the figures of a run; failed requests count only as failed."""
    done = [result for result in results if result.success]
    samples = {
        "ttft": [result.ttft for result in done],
        "tpot": [tpot for result in done if (tpot := result.tpot) is not None],
        "itl": [gap for result in done for gap in result.itl],
        "e2el": [result.latency for result in done],
    }
    return ServingFigures(
        duration_s=duration_s,
        completed=len(done),
        failed=len(results) - len(done),
        total_input_tokens=sum(result.prompt_len for result in done),
        total_output_tokens=sum(result.output_len for result in done),
        max_output_tokens_per_s=peak_tokens_per_s(done),
        max_concurrent_requests=peak_concurrency(done),
        num_good=sum(is_good(result, limits_ms) for result in done) if limits_ms else None,
        distributions={name: distribution(s, percentiles) for name, s in samples.items()},
    )


def distribution(samples_s: Sequence[float], percentiles: Sequence[float]) -> Distribution:
    """Return the spread of samples given in seconds; all 0 when there are none."""
    values_ms = np.asarray(samples_s or [0.0]) * 1000.0
    return Distribution(
        mean_ms=float(np.mean(values_ms)),
        median_ms=float(np.median(values_ms)),
        std_ms=float(np.std(values_ms)),
        percentiles_ms=tuple((p, float(np.percentile(values_ms, p))) for p in percentiles),
    )


def is_good(result: BenchResult, limits_ms: Mapping[str, float]) -> bool:
    """Whether a request stayed within every limit."""
    values = {"ttft": result.ttft, "tpot": result.tpot or 0.0, "e2el": result.latency}
    return all(values[name] * 1000.0 <= limit for name, limit in limits_ms.items())


def peak_tokens_per_s(results: Sequence[BenchResult]) -> float:
    """Return the most arrivals of tokens in any one second, seconds counted from the start."""
    if not results:
        return 0.0
    started_at = min(result.start_time for result in results)
    arrivals = np.concatenate([_arrivals(result) - started_at for result in results])
    return float(np.max(np.bincount(arrivals.astype(int))))


def peak_concurrency(results: Sequence[BenchResult]) -> int:
    """Return the most requests in flight at any moment."""
    starts = [(result.start_time, 1) for result in results]
    ends = [(result.start_time + result.latency, -1) for result in results]
    num_running = peak = 0
    for _, change in sorted(starts + ends):
        num_running += change
        peak = max(peak, num_running)
    return peak


def _arrivals(result: BenchResult) -> np.ndarray:
    return result.start_time + result.ttft + np.cumsum([0.0, *result.itl])
