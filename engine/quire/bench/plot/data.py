"""What is plotted of a run: distributions, and what happened over time. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire.bench.request import BenchResult

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
NUM_BINS = 40
LOG_RATIO = 8.0
"""Where the largest value is so many medians, the axis is logarithmic."""
LOG_SPAN = 50.0
"""A logarithmic axis begins at most so far below the median: pieces that come together are 0."""
LEAST_SPREAD = 1e-6
"""Values that differ by less are one value: bins between them would be without width."""
BIN_WIDTHS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
MAX_TIME_BINS = 60
MAX_POINTS = 1500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """The distribution of one metric, in milliseconds."""

    name: str
    title: str
    unit: str
    """What one sample is of."""
    samples_ms: Floats
    """Ascending."""
    percentiles: tuple[float, ...]

    @property
    def is_log(self) -> bool:
        """Whether the values spread so far that only a logarithmic axis shows them."""
        median = self.percentile(50)
        return bool(median > 0 and self.samples_ms[-1] > LOG_RATIO * median)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.samples_ms, percent))

    @property
    def lowest_shown(self) -> float:
        """Where the axis begins; what is below is drawn there."""
        low = float(self.samples_ms[0])
        return max(low, self.percentile(50) / LOG_SPAN) if self.is_log else low

    def histogram(self) -> tuple[Floats, NDArray[np.int64]]:
        """Return the edges of bins, and how many samples are in each; the first has all below."""
        low, high = self.lowest_shown, float(self.samples_ms[-1])
        if high <= low * (1 + LEAST_SPREAD):
            low, high = low * 0.95, high * 1.05 + 1e-3
        make = np.geomspace if self.is_log else np.linspace
        edges = make(low, high, NUM_BINS + 1)
        # Rounding must not push the largest or the smallest sample out.
        edges[0], edges[-1] = low, high
        counts, _ = np.histogram(np.maximum(self.samples_ms, low), edges)
        return edges, counts


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """A run in intervals; `edges_s` are counted from its first request."""

    edges_s: Floats
    tokens_per_s: Floats
    """Generated tokens that arrived."""
    requests_per_s: Floats
    """Requests that ended well."""
    in_flight: Floats
    """Mean number of requests that were being answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokens:
    """When requests began and how long each waited; some, evenly chosen, where there are many."""

    at_s: Floats
    ttft_ms: Floats
    failed_at_s: Floats


def latencies(results: Sequence[BenchResult], percentiles: Sequence[float] = ()) -> list[Latencies]:
    """Return the distributions of those metrics that have samples."""
    done = [result for result in results if result.success]
    shown = tuple(sorted({*PERCENTILES, *percentiles}))
    tpots = [tpot for result in done if (tpot := result.tpot) is not None]
    found = (
        ("ttft", "Time to first token", "requests", [result.ttft for result in done]),
        ("itl", "Inter-token latency", "gaps", [gap for result in done for gap in result.itl]),
        ("tpot", "Time per output token after the first", "requests", tpots),
        ("e2el", "End-to-end latency", "requests", [result.latency for result in done]),
    )
    return [
        Latencies(
            name=name,
            title=title,
            unit=unit,
            samples_ms=np.sort(np.asarray(samples_s, dtype=np.float64) * 1e3),
            percentiles=shown,
        )
        for name, title, unit, samples_s in found
        if samples_s
    ]


def over_time(results: Sequence[BenchResult]) -> OverTime:
    """Cut a run into intervals. It has at least one result that succeeded."""
    done = [result for result in results if result.success]
    start = min(result.start_time for result in results)
    begins = np.array([result.start_time - start for result in done])
    ends = begins + np.array([result.latency for result in done])
    edges = _edges(float(ends.max()))
    widths = np.diff(edges)
    tokens = np.zeros(len(widths))
    for result, begin in zip(done, begins, strict=True):
        # An arrival may bring several tokens, and only the sum of them is known.
        arrivals = begin + result.ttft + np.cumsum([0.0, *result.itl])
        weight = result.output_len / len(arrivals)
        tokens += weight * _counted(arrivals, edges)
    inside = np.minimum(ends[:, None], edges[1:]) - np.maximum(begins[:, None], edges[:-1])
    return OverTime(
        edges_s=edges,
        tokens_per_s=tokens / widths,
        requests_per_s=_counted(ends, edges) / widths,
        in_flight=np.clip(inside, 0.0, None).sum(axis=0) / widths,
    )


def first_tokens(results: Sequence[BenchResult]) -> FirstTokens:
    """Return the points of the plot that shows whether waiting grew."""
    start = min((result.start_time for result in results), default=0.0)
    done = sorted((r for r in results if r.success), key=lambda result: result.start_time)
    chosen = [
        done[i] for i in np.linspace(0, len(done) - 1, min(len(done), MAX_POINTS)).astype(int)
    ]
    return FirstTokens(
        at_s=np.array([result.start_time - start for result in chosen]),
        ttft_ms=np.array([result.ttft * 1e3 for result in chosen]),
        failed_at_s=np.array([r.start_time - start for r in results if not r.success]),
    )


def _edges(duration_s: float) -> Floats:
    width = next((w for w in BIN_WIDTHS_S if duration_s / w <= MAX_TIME_BINS), duration_s / 100)
    edges = np.arange(0.0, duration_s, width)
    # A short last interval would show a rate of a few tokens: the one before takes it in.
    if len(edges) > 1 and duration_s - edges[-1] < width / 2:
        edges = edges[:-1]
    return np.append(edges, max(duration_s, 1e-3))


def _counted(times: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return how many are in each interval; rounding loses none at the end."""
    counts, _ = np.histogram(np.minimum(times, edges[-1]), edges)
    return counts
