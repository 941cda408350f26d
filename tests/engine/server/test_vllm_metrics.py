"""The names, labels and buckets of vLLM 0.33, as its dashboards and autoscalers read them."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from quire_engine.core.messages import CoreStats
from quire_engine.server.metrics import EngineDescription, EngineMetrics, FinishedRequest

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

GAUGES = {
    "num_requests_running": None,
    "num_requests_waiting": None,
    "num_requests_waiting_by_reason": ("reason", {"capacity", "deferred"}),
    "kv_cache_usage_perc": None,
    "gpu_cache_usage_perc": None,
    "engine_sleep_state": ("sleep_state", {"awake", "weights_offloaded", "discard_all"}),
}
COUNTERS = {
    "prefix_cache_queries": None,
    "prefix_cache_hits": None,
    "gpu_prefix_cache_queries": None,
    "gpu_prefix_cache_hits": None,
    "external_prefix_cache_queries": None,
    "external_prefix_cache_hits": None,
    "mm_cache_queries": None,
    "mm_cache_hits": None,
    "num_preemptions": None,
    "prompt_tokens": None,
    "prompt_tokens_by_source": (
        "source",
        {"local_compute", "local_cache_hit", "external_kv_transfer"},
    ),
    "prompt_tokens_cached": None,
    "prompt_tokens_cached_by_source": (
        "source",
        {"device", "host", "p2p", "disk", "external_unspecified"},
    ),
    "generation_tokens": None,
    "request_success": ("finished_reason", {"stop", "length", "abort", "error", "repetition"}),
    "admission_rejections": ("reason", {"max_num_queued_reqs", "max_num_queued_tokens"}),
    "spec_decode_num_drafts": None,
    "spec_decode_num_draft_tokens": None,
    "spec_decode_num_accepted_tokens": None,
}
HISTOGRAMS = {
    "time_to_first_token_seconds": FIRST_TOKEN_S,
    "inter_token_latency_seconds": TOKEN_S,
    "time_per_output_token_seconds": TOKEN_S,
    "request_time_per_output_token_seconds": TOKEN_S,
    "e2e_request_latency_seconds": REQUEST_S,
    "request_queue_time_seconds": REQUEST_S,
    "request_inference_time_seconds": REQUEST_S,
    "request_prefill_time_seconds": REQUEST_S,
    "request_decode_time_seconds": REQUEST_S,
    "iteration_tokens_total": STEP_TOKENS,
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
    "request_max_num_generation_tokens": TOKENS,
    "request_params_max_tokens": TOKENS,
    "request_prefill_kv_computed_tokens": TOKENS,
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
}
USUAL_LABELS = {"model_name", "engine"}
ABSENT = {
    # Only with adapters, a model that speculates, or a flag that asks for them; vLLM leaves them
    # out then too.
    "lora_requests_info",
    "spec_decode_num_accepted_tokens_per_pos",
    "corrupted_requests",
    "kv_block_lifetime_seconds",
    "kv_block_idle_before_evict_seconds",
    "kv_block_reuse_gap_seconds",
}


def families(*, compat: str) -> dict[str, Metric]:
    description = EngineDescription(
        max_model_len=4096,
        cache_info={
            "block_size": "16",
            "num_gpu_blocks": "100",
            "cache_dtype": "bfloat16",
            "enable_prefix_caching": "True",
        },
    )
    metrics = EngineMetrics("tiny", description, compat=compat)
    metrics.on_step(CoreStats(num_steps=1, step_num_tokens=12, num_waiting=3, num_held=1))
    metrics.first_token.observe(0.003)
    metrics.on_finished(
        FinishedRequest(
            finish_reason="stop",
            num_generation_tokens=3,
            max_num_generation_tokens=3,
            num_completions=1,
            max_tokens=8,
            latency_s=1.2,
        )
    )
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {
        family.name.removeprefix("vllm:"): family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("vllm:")
    }


@pytest.fixture(scope="module")
def shown() -> dict[str, Metric]:
    return families(compat="vllm")


def test_every_name_is_there_and_no_other(shown: dict[str, Metric]) -> None:
    assert set(shown) == {*GAUGES, *COUNTERS, *HISTOGRAMS, "cache_config_info"}
    assert not ABSENT & set(shown)


def test_without_the_flag_there_is_none() -> None:
    assert families(compat="") == {}


@pytest.mark.parametrize(("name", "labelled"), {**GAUGES, **COUNTERS}.items())
def test_numbers_have_the_labels_of_vllm(
    shown: dict[str, Metric], name: str, labelled: tuple[str, set[str]] | None
) -> None:
    family = shown[name]

    assert family.type == ("gauge" if name in GAUGES else "counter")
    suffix = "" if name in GAUGES else "_total"
    assert {sample.name for sample in family.samples} == {f"vllm:{name}{suffix}"}
    label = {labelled[0]} if labelled else set()
    assert all(set(sample.labels) == USUAL_LABELS | label for sample in family.samples)
    if labelled:
        assert {sample.labels[labelled[0]] for sample in family.samples} == labelled[1]


@pytest.mark.parametrize(("name", "bounds"), HISTOGRAMS.items())
def test_histograms_have_the_buckets_of_vllm(
    shown: dict[str, Metric], name: str, bounds: tuple[float, ...]
) -> None:
    family = shown[name]
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]

    assert family.type == "histogram"
    assert [float(sample.labels["le"]) for sample in buckets] == [
        *bounds,
        float("inf"),
    ]
    assert all(set(sample.labels) == {*USUAL_LABELS, "le"} for sample in buckets)


def test_the_cache_is_described_as_the_gateway_extension_reads_it(
    shown: dict[str, Metric],
) -> None:
    (sample,) = shown["cache_config_info"].samples

    assert sample.value == 1
    assert sample.labels.items() >= {("block_size", "16"), ("num_gpu_blocks", "100")}


def test_one_observation_is_counted_in_both_kinds_of_buckets(shown: dict[str, Metric]) -> None:
    counts = {
        sample.labels["le"]: sample.value
        for sample in shown["time_to_first_token_seconds"].samples
        if sample.name.endswith("_bucket")
    }

    assert (counts["0.001"], counts["0.005"]) == (0, 1)
