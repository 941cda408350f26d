import http.client
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from quire_engine.core.messages import CoreStats, Roofline
from quire_engine.errors import ConfigError
from quire_engine.server.histogram import Histogram
from quire_engine.server.metric_catalogue import CATALOGUE, COMMON_LABELS, TIME_TO_FIRST_TOKEN
from quire_engine.server.metrics import (
    EngineDescription,
    EngineMetrics,
    FinishedRequest,
    SloTargets,
    bounds_of,
    waiting_by_reason,
)
from quire_engine.server.metrics_server import MetricsServer

STATS = CoreStats(
    num_running=3,
    num_waiting=2,
    num_used_blocks=25,
    num_total_blocks=100,
    num_steps=7,
    num_preemptions=1,
    num_prompt_tokens=80,
    num_generated_tokens=40,
    num_prefix_queried_tokens=100,
    num_prefix_hit_tokens=20,
    step_num_tokens=12,
)
FINISHED = FinishedRequest(
    finish_reason="stop",
    num_prompt_tokens=50,
    num_cached_tokens=20,
    num_generation_tokens=11,
    max_num_generation_tokens=11,
    num_completions=1,
    max_tokens=64,
    latency_s=1.6,
    queue_s=0.1,
    prefill_s=0.5,
    decode_s=1.0,
)


DESCRIPTION = EngineDescription(
    max_model_len=1000,
    cache_info={
        "block_size": "16",
        "num_gpu_blocks": "100",
        "cache_dtype": "bfloat16",
        "enable_prefix_caching": "True",
    },
    info={"version": "1", "dtype": "bfloat16", "device": "cpu"},
    startup_s={"weights": 1.5},
    roofline=Roofline(
        weight_bytes=100, block_bytes=4, num_parameters=50, peak_bytes_per_s=1e4, peak_flops=1e6
    ),
)
TARGETS = SloTargets(first_token_s=1.0, seconds_per_token=0.2)


def new_metrics(compat: str = "", targets: SloTargets = TARGETS) -> EngineMetrics:
    return EngineMetrics("tiny", DESCRIPTION, compat=compat, targets=targets)


def scrape(port: int, accept: str = "text/plain") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics", headers={"Accept": accept})
    body = connection.getresponse().read().decode()
    connection.close()
    return body


def parse(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer(host="127.0.0.1", port=0)
    yield server
    server.close()


def exposition(metrics: EngineMetrics) -> str:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def samples(metrics: EngineMetrics) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for family in parse(exposition(metrics)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_gauges_and_counters_show_the_last_step() -> None:
    metrics = new_metrics()
    metrics.on_step(STATS)

    found = samples(metrics)

    expected = {
        "quire_engine_num_requests_running": 3,
        "quire_engine_num_requests_waiting": 2,
        "quire_engine_kv_cache_usage_ratio": 0.25,
        "quire_engine_steps_total": 7,
        "quire_engine_kernel_compiles_after_ready_total": 0,
        "quire_engine_num_preemptions_total": 1,
        "quire_engine_prompt_tokens_total": 100,
        "quire_engine_prompt_tokens_cached_total": 20,
        "quire_engine_generation_tokens_total": 40,
        "quire_engine_prefix_cache_queries_total": 100,
        "quire_engine_prefix_cache_hits_total": 20,
        "quire_engine_iteration_tokens_total_count": 1,
    }
    assert {name: found[name][0].value for name in expected} == expected
    assert found["quire_engine_steps_total"][0].labels == {"model_name": "tiny", "engine": "0"}


def test_a_finished_request_is_in_every_histogram() -> None:
    metrics = new_metrics()
    metrics.on_finished(FINISHED)

    found = samples(metrics)

    sums = {
        "e2e_request_latency_seconds": 1.6,
        "request_queue_time_seconds": 0.1,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 1.0,
        "request_inference_time_seconds": 1.5,
        "request_time_per_output_token_seconds": 0.1,
        "request_prompt_tokens": 50,
        "request_prefill_kv_computed_tokens": 30,
        "request_generation_tokens": 11,
        "request_params_max_tokens": 64,
    }
    for name, total in sums.items():
        assert found[f"quire_engine_{name}_sum"][0].value == pytest.approx(total), name
        assert found[f"quire_engine_{name}_count"][0].value == 1, name
    by_reason = {
        sample.labels["finished_reason"]: sample.value
        for sample in found["quire_engine_request_success_total"]
    }
    assert by_reason == {"stop": 1, "length": 0, "abort": 0, "error": 0}


def test_a_request_that_ended_early_counts_without_its_phases() -> None:
    metrics = new_metrics()
    metrics.on_finished(
        FinishedRequest(
            finish_reason="abort",
            num_generation_tokens=0,
            max_num_generation_tokens=0,
            num_completions=1,
            max_tokens=None,
            latency_s=0.2,
        )
    )

    found = samples(metrics)

    assert found["quire_engine_e2e_request_latency_seconds_count"][0].value == 1
    assert found["quire_engine_request_prefill_time_seconds_count"][0].value == 0


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, 3)

    assert histogram.buckets() == [("1.0", 2), ("2.0", 6), ("5.0", 6), ("+Inf", 7)]
    assert histogram.total == 18.0


def test_first_token_buckets_reach_from_5_ms_to_60_s() -> None:
    bounds = TIME_TO_FIRST_TOKEN.buckets

    assert (bounds[0], bounds[-1]) == (0.005, 60)
    assert list(bounds) == sorted(set(bounds))


def test_vllm_names_are_there_only_when_asked_for() -> None:
    assert not any(name.startswith("vllm:") for name in samples(new_metrics()))


def test_vllm_names_old_and_new_show_the_same_numbers() -> None:
    metrics = new_metrics("vllm")
    metrics.on_step(STATS)
    metrics.inter_token.observe(0.02)
    metrics.on_finished(FINISHED)

    found = samples(metrics)

    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:gpu_cache_usage_perc": 0.25,
        "vllm:prefix_cache_queries_total": 100,
        "vllm:prefix_cache_hits_total": 20,
        "vllm:gpu_prefix_cache_queries_total": 100,
        "vllm:gpu_prefix_cache_hits_total": 20,
        "vllm:num_preemptions_total": 1,
        "vllm:prompt_tokens_total": 100,
        "vllm:generation_tokens_total": 40,
        "vllm:inter_token_latency_seconds_count": 1,
        "vllm:time_per_output_token_seconds_count": 1,
        "vllm:time_to_first_token_seconds_count": 0,
        "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:iteration_tokens_total_sum": 12,
        "vllm:cache_config_info": 1,
    }
    assert {name: found[name][0].value for name in expected} == expected
    waiting = found["vllm:num_requests_waiting_by_reason"]
    assert {sample.labels["reason"]: sample.value for sample in waiting} == {
        "capacity": 2,
        "deferred": 0,
    }
    for name in expected:
        assert found[name][0].labels.items() >= {("model_name", "tiny"), ("engine", "0")}


def test_openmetrics_is_offered_too(server: MetricsServer) -> None:
    metrics = new_metrics("vllm")
    metrics.on_step(STATS)
    server.add(metrics)

    text = scrape(server.port, "application/openmetrics-text")
    families = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # theirs

    assert any(family.name == "quire_engine_steps" for family in families)


def test_names_carry_their_units() -> None:
    for family in parse(exposition(new_metrics())):
        if family.type == "histogram" and "time" in family.name:
            assert family.name.endswith("_seconds"), family.name
        assert all(not math.isnan(sample.value) for sample in family.samples)


def test_a_port_in_use_is_a_configuration_error(server: MetricsServer) -> None:
    with pytest.raises(ConfigError, match=f"cannot serve metrics on 127.0.0.1:{server.port}"):
        MetricsServer(host="127.0.0.1", port=server.port)


def test_what_is_exposed_is_what_the_catalogue_declares() -> None:
    metrics = new_metrics()
    metrics.on_step(replace(STATS, decode_step_s=0.1, prefill_tokens_per_s=100.0))

    families = {family.name: family for family in parse(exposition(metrics))}

    assert set(families) == {declared.family for declared in CATALOGUE}
    for declared in CATALOGUE:
        family = families[declared.family]
        assert family.type == declared.kind, declared.name
        assert family.documentation == declared.help
        for sample in family.samples:
            labels = set(sample.labels) - {"le"}
            assert labels == {*COMMON_LABELS, *declared.labels}, declared.name
        if declared.values:
            shown = {sample.labels[declared.labels[0]] for sample in family.samples}
            assert shown == set(declared.values), declared.name
        if declared.kind == "histogram":
            bounds = {s.labels["le"] for s in family.samples if "le" in s.labels}
            limits = [float(bound) for bound in bounds_of(declared, DESCRIPTION.max_model_len)]
            assert bounds == {*map(str, limits), "+Inf"}, declared.name


def test_waiting_sequences_are_told_apart_by_what_they_wait_for() -> None:
    stats = CoreStats(num_waiting=5, num_held=2, waits_for="kv_space")

    assert waiting_by_reason(stats) == {
        "seats": 0,
        "kv_space": 3,
        "budget": 0,
        "shared_prefix": 2,
    }


def test_time_waited_adds_up_over_sequences_and_steps() -> None:
    metrics = new_metrics()
    for busy_s in (0.5, 0.75):
        metrics.on_step(CoreStats(num_waiting=4, waits_for="seats", busy_s=busy_s))

    waited = samples(metrics)["quire_engine_wait_seconds_total"]

    assert {sample.labels["reason"]: sample.value for sample in waited}["seats"] == 4 * 0.75


def test_tokens_of_aborted_and_failed_requests_count_as_wasted() -> None:
    metrics = new_metrics()
    metrics.on_step(CoreStats(num_recomputed_tokens=7, num_overrun_tokens=2))
    metrics.on_finished(replace(FINISHED, finish_reason="abort", num_generation_tokens=5))
    metrics.on_finished(replace(FINISHED, finish_reason="error", num_generation_tokens=3))
    metrics.on_finished(FINISHED)

    wasted = samples(metrics)["quire_engine_wasted_tokens_total"]

    assert {sample.labels["reason"]: sample.value for sample in wasted} == {
        "preempted": 7,
        "overrun": 2,
        "aborted": 5,
        "failed": 3,
    }


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (FINISHED, "met"),
        (replace(FINISHED, queue_s=0.6), "slow_first_token"),
        (replace(FINISHED, decode_s=3.0), "slow_tokens"),
        (replace(FINISHED, finish_reason="error"), "failed"),
        (replace(FINISHED, finish_reason="abort"), None),
    ],
)
def test_requests_are_judged_by_the_targets(request_: FinishedRequest, result: str | None) -> None:
    metrics = new_metrics()
    metrics.on_finished(request_)

    judged = samples(metrics)["quire_engine_slo_requests_total"]

    assert [s.labels["result"] for s in judged if s.value] == ([result] if result else [])


def test_without_targets_nothing_is_judged() -> None:
    metrics = new_metrics(targets=SloTargets())
    metrics.on_finished(FINISHED)

    assert "quire_engine_slo_requests_total" not in samples(metrics)
    assert "quire_engine_slo_target_seconds" not in samples(metrics)


def test_roofline_shares_follow_from_the_last_steps() -> None:
    metrics = new_metrics()
    metrics.on_step(replace(STATS, decode_step_s=0.1, prefill_tokens_per_s=100.0))

    shares = samples(metrics)["quire_engine_roofline_ratio"]

    # 100 bytes of weights and 25 blocks of 4; 2 * 50 operations per token.
    assert {sample.labels["phase"]: sample.value for sample in shares} == {
        "decode": pytest.approx(200 / 0.1 / 1e4),
        "prefill": pytest.approx(100 * 100 / 1e6),
    }


def test_a_hung_engine_shows_in_the_age_of_its_last_step() -> None:
    metrics = new_metrics()
    metrics.watch_progress(lambda: 12.5)

    assert samples(metrics)["quire_engine_last_step_age_seconds"][0].value == 12.5


@pytest.mark.parametrize(
    ("num_prefill_tokens", "phase"), [(0, "decode"), (12, "prefill"), (4, "mixed")]
)
def test_steps_are_timed_by_what_they_computed(num_prefill_tokens: int, phase: str) -> None:
    metrics = new_metrics()
    metrics.on_step(replace(STATS, step_num_prefill_tokens=num_prefill_tokens, step_s=0.02))

    counts = samples(metrics)["quire_engine_step_seconds_count"]

    assert [sample.labels["phase"] for sample in counts if sample.value] == [phase]


def test_what_is_said_twice_of_one_step_counts_once() -> None:
    metrics = new_metrics()
    metrics.on_step(STATS)
    metrics.on_step(STATS)

    assert samples(metrics)["quire_engine_iteration_tokens_total_count"][0].value == 1
