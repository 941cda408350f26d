"""`quire bench serve --plot`: what is drawn is what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from openai_server import OpenAIServer
from quire.bench.options import ReportConfig
from quire.bench.plot.data import latencies, over_time
from quire.bench.plot.page import page
from quire.bench.plot.svg import Scale, nice, number
from quire.bench.request import BenchResult
from quire.bench.statistics import summarize
from quire_engine.errors import ConfigError
from quire_process import run_quire


def result(start: float, ttft: float, *itl: float, tokens: int | None = None) -> BenchResult:
    return BenchResult(
        prompt_len=10,
        start_time=start,
        success=True,
        latency=ttft + sum(itl),
        ttft=ttft,
        itl=list(itl),
        output_len=1 + len(itl) if tokens is None else tokens,
    )


def page_of(results: list[BenchResult], **settings_: str) -> str:
    figures = summarize(results, 2.0)
    return page(figures, results, settings={"Model": "m", **settings_})


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    return dict(json.loads(found[1]))


RESULTS = [
    result(100.0, 0.2, 0.1, 0.3),
    result(100.5, 0.4),
    result(101.0, 0.6, 0.2),
    BenchResult(prompt_len=99, start_time=100.1, error="refused"),
]


def test_percentiles_are_those_of_the_measured_values() -> None:
    ttft = data_of(page_of(RESULTS))["latencies"]["ttft"]

    assert ttft["num"] == 3
    assert ttft["mean_ms"] == pytest.approx(400)
    assert ttft["max_ms"] == pytest.approx(600)
    assert ttft["percentiles_ms"] == pytest.approx(
        {name: np.percentile([200, 400, 600], float(name)) for name in ("50", "90", "95", "99")}
    )


def test_every_metric_of_the_printed_figures_is_drawn() -> None:
    html = page_of(RESULTS)

    assert list(data_of(html)["latencies"]) == ["ttft", "itl", "tpot", "e2el"]
    assert html.count("<svg") == 6
    assert 'aria-label="Time to first token: half are below 400 ms, 99% below 596 ms"' in html


def test_a_metric_without_samples_is_left_out() -> None:
    assert list(data_of(page_of([result(1.0, 0.5)]))["latencies"]) == ["ttft", "e2el"]


def test_what_arrives_in_an_interval_is_counted_there() -> None:
    # Tokens at 0.2, 0.3, 0.6 | 0.9 | 1.6, 1.8 s after the first request; ends at 0.6, 0.9, 1.8.
    run = over_time(RESULTS)
    widths = np.diff(run.edges_s)
    middles = run.edges_s[:-1] + widths / 2

    def between(low: float, high: float) -> Any:
        return (middles > low) & (middles < high)

    assert run.edges_s[-1] == pytest.approx(1.8)
    assert float((run.tokens_per_s * widths)[between(0.0, 0.85)].sum()) == pytest.approx(3)
    assert float((run.requests_per_s * widths)[between(0.85, 1.8)].sum()) == pytest.approx(2)
    # Two requests share the time from 0.5 to 0.6 s.
    assert run.in_flight[between(0.5, 0.6)] == pytest.approx(2.0)
    assert run.in_flight[between(0.9, 1.0)] == pytest.approx(0.0)


def test_tokens_that_arrive_together_are_all_counted() -> None:
    run = over_time([result(0.0, 0.1, 0.1, tokens=10)])

    assert float((run.tokens_per_s * np.diff(run.edges_s)).sum()) == pytest.approx(10)


samples = st.lists(
    st.builds(
        result,
        st.floats(0, 500),
        st.floats(1e-4, 60),
        st.floats(0, 5),
        st.floats(1e-4, 5),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40)
@given(samples)
def test_nothing_that_was_measured_is_lost(results: list[BenchResult]) -> None:
    data = data_of(page_of(results))

    for metric in data["latencies"].values():
        assert sum(metric["histogram"]["counts"]) == metric["num"]
        assert np.all(np.diff(metric["histogram"]["edges_ms"]) > 0)
    widths = np.diff(data["over_time"]["edges_s"])
    assert sum(data["over_time"]["requests_per_s"] * widths) == pytest.approx(len(results))
    assert sum(data["over_time"]["tokens_per_s"] * widths) == pytest.approx(3 * len(results))
    total_s = sum(result.latency for result in results)
    assert sum(data["over_time"]["in_flight"] * widths) == pytest.approx(total_s)


def test_values_that_spread_far_get_a_logarithmic_axis() -> None:
    [near, *_] = latencies([result(0.0, 0.1), result(0.0, 0.2)])
    [far, *_] = latencies([*(result(0.0, 0.1) for _ in range(9)), result(0.0, 5.0)])

    assert (near.is_log, far.is_log) == (False, True)
    assert "(logarithmic)" in page_of([*(result(0.0, 0.1) for _ in range(9)), result(0.0, 5.0)])


def test_pieces_that_come_together_do_not_stretch_the_axis() -> None:
    gaps = [*[1e-6] * 5, *[0.02] * 50, 0.5]
    itl = next(each for each in latencies([result(0.0, 0.1, *gaps)]) if each.name == "itl")
    edges_ms, counts = itl.histogram()

    assert itl.is_log
    assert edges_ms[0] == pytest.approx(20 / 50)
    assert counts[0] == 5
    assert "at most 0.4781 ms: 5 gaps" in page_of([result(0.0, 0.1, *gaps)])


def test_text_of_servers_is_never_markup() -> None:
    wrong = BenchResult(prompt_len=1, start_time=0.0, error="</script><script>alert(1)</script>")

    html = page_of([result(0.0, 0.1), wrong], Server="<b>http://x</b>")

    assert "<b>" not in html
    assert html.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in html


def test_without_a_success_the_page_says_why() -> None:
    html = page_of([BenchResult(prompt_len=1, start_time=0.0, error="503: full")])

    assert "No request succeeded" in html
    assert "503: full" in html
    assert "<svg" not in html


@given(low=st.floats(0, 1e6), span=st.floats(1e-6, 1e6), num=st.integers(1, 10))
def test_ticks_are_round_and_on_the_axis(low: float, span: float, num: int) -> None:
    high = low + span
    ticks = Scale(low=low, high=high, start=0, end=100).ticks(num)

    assert len(ticks) <= num + 1
    assert all(low - 1e-6 * high <= tick <= high + 1e-6 * high for tick in ticks)


@pytest.mark.parametrize(("step", "wanted"), [(0.011, 0.02), (1.0, 1.0), (2.1, 5.0), (70, 100)])
def test_steps_are_one_two_or_five(step: float, wanted: float) -> None:
    assert nice(step) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.01234"), (99.954, "99.95"), (12345.6, "12,346")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


async def test_a_run_writes_its_page_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    async with OpenAIServer(ttft_s=0.02, itl_s=0.005).run() as server:
        status, out, err = await run_quire(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "12"),
            *("--random-input-len", "8", "--random-output-len", "3", "--max-concurrency", "4"),
            *("--plot", str(path), "--metadata", "Machine=mine"),
        )

    assert (status, err) == (0, "")
    assert out.endswith(f"Plots: {path}\n")
    html = path.read_text()
    data = data_of(html)
    assert data["latencies"]["ttft"]["num"] == 12
    assert data["latencies"]["itl"]["num"] == 24
    assert data["latencies"]["ttft"]["percentiles_ms"]["50"] >= 20
    printed = re.search(r"Median TTFT \(ms\): +([0-9.]+)", out)
    assert printed is not None
    assert data["latencies"]["ttft"]["percentiles_ms"]["50"] == pytest.approx(
        float(printed[1]), abs=0.01
    )
    for text in ("12 of random, 8 tokens in, 3 out", "at most 4 in flight", "Machine", "mine"):
        assert text in html


@pytest.mark.parametrize(
    ("place", "message"), [("missing/out.html", "does not exist; create it"), (".", "is a folder")]
)
def test_a_place_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, place: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ReportConfig(plot=str(tmp_path / place))
