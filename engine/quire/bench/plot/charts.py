"""The charts of a run: how latencies spread, and what happened over time."""

from collections.abc import Iterator

from quire.bench.plot import svg
from quire.bench.plot.data import FirstTokens, Floats, Latencies, OverTime
from quire.bench.plot.svg import LEFT, RIGHT, WIDTH, Panel, Scale, number

SECONDS_FROM_MS = 10_000.0
"""Axes with longer values are in seconds."""
LABEL_ROOM = 24.0
"""Of the percentiles' labels, above the plot."""
MARKED = (50.0, 90.0, 99.0)


def latency_chart(spread: Latencies) -> str:
    """Return a histogram, with the share of samples below each value under it."""
    edges_ms, counts = spread.histogram()
    factor, unit = (1e-3, "s") if edges_ms[-1] >= SECONDS_FROM_MS else (1.0, "ms")
    edges = (edges_ms * factor).tolist()
    x = Scale(low=edges[0], high=edges[-1], start=LEFT, end=WIDTH - RIGHT, is_log=spread.is_log)
    above = Panel(x=x, y=_up_from_zero(float(counts.max()), bottom=150, top=40))
    below = Panel(x=x, y=Scale(low=0, high=100, start=310, end=190))
    notes = [
        f"{number(edges[i])} to {number(edges[i + 1])} {unit}: {count:,} {spread.unit}"
        for i, count in enumerate(counts.tolist())
    ]
    if spread.lowest_shown > spread.samples_ms[0]:
        notes[0] = f"at most {number(edges[1])} {unit}: {counts[0]:,} {spread.unit}"
    median, worst = (number(spread.percentile(p) * factor) for p in (50, 99))
    axis = f"{spread.title}, {unit}" + (" (logarithmic)" if spread.is_log else "")
    label = f"{spread.title}: half are below {median} {unit}, 99% below {worst} {unit}"
    parts = [
        *above.frame("", f"Number of {spread.unit}", room=LABEL_ROOM),
        *above.bars(edges, counts.tolist(), notes),
        *below.frame(axis, f"% of {spread.unit} below"),
        _cumulative(below, spread, factor),
        *_marks(above, below, spread, factor, unit),
    ]
    return svg.figure(352, label, parts)


def throughput_chart(run: OverTime) -> str:
    """Return generated tokens and finished requests per second."""
    x = _time_axis(run)
    tokens = Panel(x=x, y=_up_from_zero(float(run.tokens_per_s.max()), bottom=150, top=30))
    requests = Panel(x=x, y=_up_from_zero(float(run.requests_per_s.max()), bottom=310, top=190))
    label = (
        f"Generated tokens per second over time, at most {number(run.tokens_per_s.max())}, "
        f"and finished requests per second, at most {number(run.requests_per_s.max())}"
    )
    parts = [
        *tokens.frame("", "Generated tokens per second"),
        *_steps(tokens, run, run.tokens_per_s, "tok/s"),
        *requests.frame("Time since the first request, s", "Finished requests per second"),
        *_steps(requests, run, run.requests_per_s, "requests/s"),
    ]
    return svg.figure(352, label, parts)


def waiting_chart(run: OverTime, waits: FirstTokens) -> str:
    """Return requests in flight, and how long each waited for its first token."""
    x = _time_axis(run)
    flight = Panel(x=x, y=_up_from_zero(float(run.in_flight.max()), bottom=150, top=30))
    most_ms = float(waits.ttft_ms.max())
    factor, unit = (1e-3, "s") if most_ms >= SECONDS_FROM_MS else (1.0, "ms")
    first = Panel(x=x, y=_up_from_zero(most_ms * factor, bottom=310, top=190))
    label = (
        f"Requests in flight over time, at most {number(run.in_flight.max())}, and the time to the "
        f"first token of each request, at most {number(most_ms * factor)} {unit}"
    )
    points = zip(waits.at_s.tolist(), (waits.ttft_ms * factor).tolist(), strict=True)
    failed = [at for at in waits.failed_at_s.tolist() if at <= x.high]
    parts = [
        *flight.frame("", "Requests in flight"),
        *_steps(flight, run, run.in_flight, "in flight"),
        *first.frame(
            "Time since the first request, s", f"Time to first token, {unit}, by start of request"
        ),
        *(
            svg.dot(x(at), first.y(wait), f"began at {at:.2f} s, waited {number(wait)} {unit}")
            for at, wait in points
        ),
        *(svg.dot(x(at), first.bottom, f"failed, began at {at:.2f} s", "bad") for at in failed),
    ]
    return svg.figure(352, label, parts)


def _up_from_zero(highest: float, *, bottom: float, top: float) -> Scale:
    return Scale(low=0.0, high=highest * 1.08 or 1.0, start=bottom, end=top)


def _time_axis(run: OverTime) -> Scale:
    return Scale(low=0.0, high=float(run.edges_s[-1]), start=LEFT, end=WIDTH - RIGHT)


def _steps(panel: Panel, run: OverTime, heights: Floats, unit: str) -> Iterator[str]:
    edges = run.edges_s.tolist()
    notes = [
        f"{edges[i]:.4g} to {edges[i + 1]:.4g} s: {number(height)} {unit}"
        for i, height in enumerate(heights.tolist())
    ]
    yield from panel.steps(edges, heights.tolist(), notes)


def _cumulative(panel: Panel, spread: Latencies, factor: float) -> str:
    # Percentiles at even steps draw the same curve as all samples, however many these are.
    percents = [index / 2 for index in range(201)]
    points = [
        f"{panel.x(max(spread.percentile(p), spread.lowest_shown) * factor)} {panel.y(p)}"
        for p in percents
    ]
    return f'<path class="curve" d="M{"L".join(points)}"/>'


def _marks(
    above: Panel, below: Panel, spread: Latencies, factor: float, unit: str
) -> Iterator[str]:
    """Yield lines at percentiles, labelled where labels do not cover each other."""
    last_x = -100.0
    for percent in MARKED:
        value = spread.percentile(percent) * factor
        x = above.x(value)
        yield svg.line(x, above.top, x, below.bottom, "mark")
        note = f"{percent:g}% are below {number(value)} {unit}"
        yield svg.dot(x, below.y(percent), note, "mark")
        if x - last_x > 28:
            yield svg.text(x, above.top - 3, f"p{percent:g}", "middle", "label")
            last_x = x
