"""`quire bench serve`: its figures by hand on known times, and as a process against a server."""

import itertools
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from openai_server import MODEL, OpenAIServer
from quire.bench.arrivals import arrival_times, request_rates
from quire.bench.datasets import IdPool, WordPool, draw_lengths, repeat_to, synthetic_requests
from quire.bench.options import DatasetConfig, LoadConfig, ReportConfig, TargetConfig
from quire.bench.report import format_figures, result_json, result_path
from quire.bench.request import BenchRequest, BenchResult
from quire.bench.statistics import peak_concurrency, summarize
from quire.cli import main
from quire.openai_client import EventDecoder
from quire_engine.errors import ConfigError
from quire_process import run_quire
from serve_process import free_port

NAME_FIELDS = "date endpoint_type backend label model_id tokenizer_id num_prompts request_rate"
FIELDS = f"""{NAME_FIELDS} burstiness max_concurrency duration completed failed
    total_input_tokens total_output_tokens request_throughput request_goodput output_throughput
    total_token_throughput max_output_tokens_per_s max_concurrent_requests rtfx""".split()
TIMES = ("ttfts", "itls", "latencies", "start_times")
DETAIL = ("input_lens", "output_lens", *TIMES, "generated_texts", "errors")


def result(start: float, ttft: float, *itl: float, prompt_len: int = 10) -> BenchResult:
    """A finished request with one token per arrival."""
    return BenchResult(
        prompt_len=prompt_len,
        start_time=start,
        success=True,
        latency=ttft + sum(itl),
        ttft=ttft,
        itl=list(itl),
        output_len=1 + len(itl),
    )


RESULTS = [
    result(100.0, 0.2, 0.1, 0.3),
    result(100.5, 0.4, prompt_len=20),
    result(101.0, 0.6, 0.2),
    BenchResult(prompt_len=99, start_time=100.0, error="refused"),
]


def test_figures_are_those_computed_by_hand() -> None:
    figures = summarize(RESULTS, 2.0, percentiles=(50.0, 99.0))

    assert (figures.completed, figures.failed) == (3, 1)
    assert (figures.total_input_tokens, figures.total_output_tokens) == (40, 6)
    assert figures.request_throughput == 1.5
    assert figures.output_throughput == 3.0
    assert figures.total_token_throughput == 23.0
    assert figures.request_goodput is None
    ttft, tpot, itl = (figures.distributions[name] for name in ("ttft", "tpot", "itl"))
    assert ttft.mean_ms == pytest.approx(400)
    assert ttft.median_ms == pytest.approx(400)
    assert ttft.std_ms == pytest.approx(math.sqrt(80_000 / 3))
    assert dict(ttft.percentiles_ms)[99.0] == pytest.approx(596)
    # (0.1 + 0.3) / 2 and 0.2 / 1; the request of one token has no time per further token.
    assert tpot.mean_ms == pytest.approx(200)
    assert itl.mean_ms == pytest.approx(200)
    assert itl.median_ms == pytest.approx(200)
    assert figures.distributions["e2el"].mean_ms == pytest.approx((600 + 400 + 800) / 3)


def test_peaks_are_counted_from_the_first_request() -> None:
    figures = summarize(RESULTS, 2.0)

    # Tokens at 0.2, 0.3, 0.6, 0.9 | 1.6, 1.8 s after the first request.
    assert figures.max_output_tokens_per_s == 4
    assert figures.max_concurrent_requests == 2


def test_requests_that_only_touch_do_not_run_at_once() -> None:
    assert peak_concurrency([result(0.0, 1.0), result(1.0, 1.0)]) == 1


def test_goodput_counts_requests_within_every_limit() -> None:
    def goodput(**limits_ms: float) -> float | None:
        return summarize(RESULTS, 1.0, limits_ms=limits_ms).request_goodput

    assert goodput(ttft=400) == 2
    assert goodput(ttft=400, tpot=150) == 1
    assert goodput(e2el=100) == 0


def test_no_result_gives_zeros() -> None:
    figures = summarize([], 1.0)

    assert figures.completed == 0
    assert figures.distributions["ttft"].mean_ms == 0
    assert figures.max_output_tokens_per_s == 0


def test_the_printed_block_has_the_labels_and_columns_of_vllms() -> None:
    figures = summarize(RESULTS, 2.0, limits_ms={"ttft": 400})
    load = LoadConfig(max_concurrency=4, request_rate=10)

    assert format_figures(figures, load, ("ttft", "tpot", "itl")).splitlines() == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     3         ",
        "Failed requests:                         1         ",
        "Maximum request concurrency:             4         ",
        "Request rate configured (RPS):           10.00     ",
        "Benchmark duration (s):                  2.00      ",
        "Total input tokens:                      40        ",
        "Total generated tokens:                  6         ",
        "Request throughput (req/s):              1.50      ",
        "Request goodput (req/s):                 1.00      ",
        "Output token throughput (tok/s):         3.00      ",
        "Peak output token throughput (tok/s):    4.00      ",
        "Peak concurrent requests:                2.00      ",
        "Total token throughput (tok/s):          23.00     ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          400.00    ",
        "Median TTFT (ms):                        400.00    ",
        "P99 TTFT (ms):                           596.00    ",
        "-----Time per Output Token (excl. 1st token)------",
        "Mean TPOT (ms):                          200.00    ",
        "Median TPOT (ms):                        200.00    ",
        "P99 TPOT (ms):                           200.00    ",
        "---------------Inter-token Latency----------------",
        "Mean ITL (ms):                           200.00    ",
        "Median ITL (ms):                         200.00    ",
        "P99 ITL (ms):                            298.00    ",
        "==================================================",
    ]


def test_unlimited_runs_leave_out_rate_concurrency_and_goodput() -> None:
    block = format_figures(summarize(RESULTS, 2.0), LoadConfig(), ())

    assert "Request rate configured" not in block
    assert "Maximum request concurrency" not in block
    assert "goodput" not in block


def make_json(report: ReportConfig) -> dict[str, Any]:
    return result_json(
        summarize(RESULTS, 2.0, percentiles=report.percentiles),
        RESULTS,
        target=TargetConfig(backend="openai-chat"),
        load=LoadConfig(),
        dataset=DatasetConfig(num_prompts=4),
        report=report,
        model="org/model",
        now=datetime(2026, 1, 2, 3, 4, 5),
    )


def test_the_json_has_the_fields_of_vllms() -> None:
    report = ReportConfig(
        percentile_metrics="ttft,tpot,itl,e2el",
        metric_percentiles="50,99,99.9",
        metadata=("gpu=none",),
    )

    kept = make_json(report)

    spread = [
        f"{kind}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for kind in ("mean", "median", "std", "p50", "p99", "p99.9")
    ]
    assert sorted(kept) == sorted([*FIELDS, *spread, "gpu"])
    assert kept["date"] == "20260102-030405"
    assert kept["endpoint_type"] == kept["backend"] == "openai-chat"
    assert kept["request_rate"] == "inf"
    assert kept["gpu"] == "none"
    json.dumps(kept)


def test_detail_adds_one_entry_per_request() -> None:
    kept = make_json(ReportConfig(save_detailed=True))

    assert set(DETAIL) <= set(kept)
    assert {len(kept[name]) for name in DETAIL} == {len(RESULTS)}
    assert kept["itls"][0] == [0.1, 0.3]
    assert kept["errors"] == ["", "", "", "refused"]


def test_a_result_is_named_after_what_was_measured() -> None:
    load, now = LoadConfig(request_rate=2, max_concurrency=8), datetime(2026, 1, 2, 3, 4, 5)

    path = result_path(ReportConfig(result_dir="out"), load, TargetConfig(), "org/m", now)

    assert path == Path("out/openai-2qps-concurrency8-m-20260102-030405.json")


@given(
    st.integers(1, 200),
    st.floats(0.1, 1000),
    st.sampled_from([0.3, 1.0, 5.0]),
    st.integers(0, 2**32),
)
def test_arrivals_ascend_and_keep_the_rate(
    num_requests: int, rate: float, burstiness: float, seed: int
) -> None:
    load = LoadConfig(request_rate=rate, burstiness=burstiness)

    times = arrival_times(num_requests, load, np.random.default_rng(seed))

    assert len(times) == num_requests
    assert all(later >= earlier for earlier, later in itertools.pairwise(times))
    assert times[-1] == pytest.approx(num_requests / rate)


def test_burstiness_spreads_the_gaps() -> None:
    def spread(burstiness: float) -> float:
        load = LoadConfig(request_rate=10, burstiness=burstiness)
        times = arrival_times(4000, load, np.random.default_rng(0))
        gaps = np.diff(times)
        return float(np.std(gaps) / np.mean(gaps))

    # The coefficient of variation of a gamma distribution of shape k is 1 / sqrt(k).
    assert spread(1.0) == pytest.approx(1.0, rel=0.1)
    assert spread(4.0) == pytest.approx(0.5, rel=0.1)


def test_an_infinite_rate_sends_everything_at_once() -> None:
    assert not arrival_times(5, LoadConfig(), np.random.default_rng(0)).any()


@pytest.mark.parametrize(("strategy", "middle"), [("linear", 50.5), ("exponential", 10.0)])
def test_a_ramp_goes_from_start_to_end(strategy: str, middle: float) -> None:
    load = LoadConfig(ramp_up_strategy=strategy, ramp_up_start_rps=1, ramp_up_end_rps=100)

    rates = request_rates(101, load)

    assert (rates[0], rates[50], rates[100]) == pytest.approx((1, middle, 100))


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 2**32))
def test_lengths_stay_within_the_range(mean: int, ratio: float, seed: int) -> None:
    config = DatasetConfig(num_prompts=20, random_range_ratio=ratio)

    lengths = draw_lengths(mean, config, np.random.default_rng(seed))

    assert len(lengths) == 20
    assert max(1, math.floor(mean * (1 - ratio))) <= min(lengths)
    assert max(lengths) <= math.ceil(mean * (1 + ratio))


def test_random_prompts_have_exact_lengths_and_share_only_the_prefix() -> None:
    config = DatasetConfig(num_prompts=8, input_len=50, output_len=7, random_prefix_len=20)

    requests = synthetic_requests(config, IdPool(1000), np.random.default_rng(0), num_special=1)

    prompts = [request.prompt for request in requests]
    assert {len(prompt) for prompt in prompts} == {69}
    assert {(request.prompt_len, request.output_len) for request in requests} == {(70, 7)}
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1
    assert len({tuple(prompt[20:36]) for prompt in prompts}) == 8


def test_prefix_repetition_spreads_requests_over_the_prefixes() -> None:
    config = DatasetConfig(
        dataset_name="prefix_repetition",
        num_prompts=20,
        prefix_repetition_prefix_len=4,
        prefix_repetition_suffix_len=3,
        prefix_repetition_num_prefixes=5,
    )

    pool = WordPool(tuple("abcdefghijklmnopqrstuvwxyz"))
    requests = synthetic_requests(config, pool, np.random.default_rng(0))

    prefixes = [str(request.prompt).split()[:4] for request in requests]
    counts = [prefixes.count(prefix) for prefix in prefixes]
    assert counts == [4] * 20
    assert {request.prompt_len for request in requests} == {7}


def test_too_few_records_start_over() -> None:
    a, b = (BenchRequest(prompt=text, prompt_len=1, output_len=1) for text in "ab")
    assert [request.prompt for request in repeat_to([a, b], 5)] == ["a", "b", "a", "b", "a"]


@given(st.lists(st.integers(0, 60), max_size=8))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = 'data: {"a": "é"}\r\n\r\n: ping\n\nevent: b\ndata: two\n\ndata: [DONE]\n\n'.encode()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = EventDecoder()

    found = [
        event
        for start, end in itertools.pairwise(edges)
        for event in decoder.feed(stream[start:end])
    ]

    assert found == [("", '{"a": "é"}'), ("b", "two"), ("", "[DONE]")]


@pytest.mark.parametrize(
    ("type_", "options", "needle"),
    [
        (DatasetConfig, {"num_prompts": 0}, "num_prompts must be at least 1, not 0"),
        (DatasetConfig, {"random_range_ratio": 1.0}, "random_range_ratio"),
        (DatasetConfig, {"dataset_name": "sharegpt"}, "--dataset-path"),
        (LoadConfig, {"request_rate": 0.0}, "request_rate"),
        (LoadConfig, {"burstiness": -1.0}, "burstiness"),
        (LoadConfig, {"max_concurrency": 0}, "max_concurrency"),
        (LoadConfig, {"ramp_up_strategy": "linear"}, "--ramp-up-start-rps"),
        (ReportConfig, {"percentile_metrics": "ttft,speed"}, "'speed'"),
        (ReportConfig, {"metric_percentiles": "101"}, "[0, 100]"),
        (ReportConfig, {"metric_percentiles": "x"}, "numbers"),
        (ReportConfig, {"goodput": ("ttft=3",)}, "NAME:MILLISECONDS"),
        (ReportConfig, {"goodput": ("itl:3",)}, "itl:3"),
        (ReportConfig, {"metadata": ("x",)}, "KEY=VALUE"),
        (TargetConfig, {"header": ("x",)}, "NAME=VALUE"),
    ],
)
def test_a_value_out_of_range_is_refused(type_: type, options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        type_(**options)

    assert needle in str(caught.value)


async def test_a_run_measures_a_server_and_keeps_the_result(tmp_path: Path) -> None:
    async with OpenAIServer(ttft_s=0.3, itl_s=0.02, words=("w ",) * 8).run() as server:
        status, out, err = await run_quire(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "6"),
            *("--input-len", "24", "--output-len", "4", "--max-concurrency", "3", "--ignore-eos"),
            *("--num-warmups", "2", "--goodput", "ttft:60000", "--percentile-metrics"),
            *("ttft,tpot,itl,e2el", "--save-detailed", "--result-filename", "r.json"),
            *("--result-dir", str(tmp_path / "new"), "--header", "X-Test=1", "--api-key", "key"),
            *("--extra-body", '{"priority": 3}', "--top-p", "0.5"),
        )

    assert (status, err) == (0, "")
    assert "Successful requests:                     6         \n" in out
    assert "Mean E2EL (ms):" in out
    kept = json.loads((tmp_path / "new" / "r.json").read_text())
    assert kept["completed"] == 6
    assert kept["model_id"] == MODEL
    assert kept["input_lens"] == [24] * 6
    assert kept["output_lens"] == [4] * 6
    assert kept["total_output_tokens"] == 24
    assert kept["max_concurrent_requests"] <= 3
    assert server.max_running == 3
    assert kept["median_ttft_ms"] >= 300
    assert kept["median_e2el_ms"] >= 300 + 3 * 20
    assert [len(gaps) for gaps in kept["itls"]] == [3] * 6
    whole = [ttft + sum(gaps) for ttft, gaps in zip(kept["ttfts"], kept["itls"], strict=True)]
    assert whole == pytest.approx(kept["latencies"])
    assert len(server.bodies) == 8
    body = server.bodies[-1]
    assert {len(str(body["prompt"]).split()) for body in server.bodies} == {23}  # one is special
    assert body["model"] == MODEL
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (4, True, 0.0)
    assert (body["priority"], body["top_p"]) == (3, 0.5)
    assert server.headers[-1]["X-Test"] == "1"
    assert server.headers[-1]["Authorization"] == "Bearer key"


async def test_a_chat_run_counts_from_the_first_text_not_from_the_role() -> None:
    async with OpenAIServer(ttft_s=0.1, words=("a", "b")).run() as server:
        status, out, _ = await run_quire(
            *("bench", "serve", "--backend", "openai-chat", "--base-url", server.url),
            *("--num-prompts", "2", "--input-len", "5", "--output-len", "2"),
        )

    assert status == 0
    ttft = next(line for line in out.splitlines() if line.startswith("Mean TTFT"))
    assert float(ttft.split()[-1]) >= 100
    assert "Total input tokens:                      10        \n" in out
    assert server.bodies[0]["messages"][0]["role"] == "user"
    assert server.bodies[0]["max_completion_tokens"] == 2


async def test_failed_requests_are_counted_and_named() -> None:
    def refuse(body: dict[str, Any]) -> str:
        return "too odd" if len(server.bodies) % 2 else ""

    server = OpenAIServer(refuse=refuse)
    async with server.run():
        status, out, err = await run_quire(
            "bench", "serve", "--base-url", server.url, "--num-prompts", "4", "--input-len", "5"
        )

    assert status == 0
    assert "Successful requests:                     2         \n" in out
    assert "Failed requests:                         2         \n" in out
    assert "400: too odd" in err


async def test_a_stream_that_breaks_is_a_failure() -> None:
    async with OpenAIServer(fail_after=1).run() as server:
        status, _, err = await run_quire(
            "bench", "serve", "--base-url", server.url, "--num-prompts", "1", "--input-len", "5"
        )

    assert status == 1
    assert "the engine went away" in err


async def test_prompts_of_a_file_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a b c", "output_tokens": 2}, {"prompt": "d e"}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    async with OpenAIServer().run() as server:
        status, out, err = await run_quire(
            *("bench", "serve", "--base-url", server.url, "--dataset-name", "custom"),
            *("--dataset-path", str(path), "--num-prompts", "3"),
        )

    assert (status, err) == (0, "")
    sent = sorted((body["prompt"], body["max_tokens"]) for body in server.bodies)
    assert sent == [("a b c", 2), ("a b c", 2), ("d e", 256)]
    assert f"Total input tokens:                      {4 + 4 + 3:<10}" in out


async def test_sharegpt_takes_the_first_turn_and_the_length_of_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [["one two three four", "a b c d e"], ["short", "no"], ["alone"]]
    entries = [{"conversations": [{"value": text} for text in texts]} for texts in turns]
    path.write_text(json.dumps(entries))
    async with OpenAIServer().run() as server:
        status, _, err = await run_quire(
            *("bench", "serve", "--base-url", server.url, "--dataset-name", "sharegpt"),
            *("--dataset-path", str(path), "--num-prompts", "1"),
        )

    assert (status, err) == (0, "")
    body = server.bodies[0]
    assert (body["prompt"], body["max_tokens"]) == ("one two three four", 5)


async def test_token_ids_are_sent_where_no_word_is_one_token() -> None:
    async with OpenAIServer(is_bytewise=True).run() as server:
        status, out, err = await run_quire(
            *("bench", "serve", "--base-url", server.url, "--num-prompts", "3"),
            *("--input-len", "30", "--output-len", "2"),
        )

    assert (status, err) == (0, "")
    assert [len(body["prompt"]) for body in server.bodies] == [30] * 3
    assert set(server.bodies[0]["prompt"]) <= set(b" abcdefghijklmnopqrstuvwxyz")
    assert "Total input tokens:                      90        \n" in out


async def test_a_server_without_tokenize_needs_a_tokenizer() -> None:
    async with OpenAIServer(has_tokenize=False).run() as server:
        status, _, err = await run_quire("bench", "serve", "--base-url", server.url)

    assert status == 1
    assert "--tokenizer" in err
    assert err.count("\n") == 1


async def test_a_server_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    status, _, err = await run_quire("bench", "serve", "--base-url", url)

    assert (status, err.count("\n")) == (1, 1)
    assert f"nothing listens at {url}" in err


@pytest.mark.parametrize(
    ("arguments", "status", "needle"),
    [
        ("serve --num-prompts 0", 2, "num_prompts must be at least 1"),
        ("serve --num-promts 3", 2, "did you mean --num-prompts?"),
        ("serve --backend tgi", 2, "--backend"),
        ("latency --batch-size 0", 2, "batch_size must be at least 1"),
        ("latency --watermark 2", 2, "watermark"),
        ("throughput --dataset-name sharegpt", 2, "--dataset-path"),
        ("compare --decode-len 1", 2, "decode_len must be at least 2"),
        ("latency --compare transformers --decode-len 1", 2, "decode_len must be at least 2"),
        ("speed", 2, "unknown command: speed"),
    ],
)
def test_a_wrong_benchmark_ends_with_one_line(
    arguments: str, status: int, needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = main(["bench", *arguments.split()])
    except SystemExit as ended:
        code = ended.code

    err = capsys.readouterr().err
    assert code == status
    assert needle in err
    assert err.count("\n") == 1
