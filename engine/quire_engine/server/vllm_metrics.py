"""vLLM's names for the engine's numbers, with its labels and buckets: `--metrics-compat vllm`.

Dashboards, autoscalers and gateways that know vLLM then read this engine unchanged. Names of
earlier versions, which they may still ask for, stand beside the present ones. What does not exist
here (multimodal input, a cache outside, speculation, sleep) is 0, as in a vLLM that uses none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from quire_engine.core.messages import CoreStats
from quire_engine.server import metric_catalogue as catalogue
from quire_engine.server.metric_catalogue import one_two_five

PREFIX = "vllm:"

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKENS = (1, 8, *(2**power for power in range(4, 15)))
COMPLETIONS = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)

FINISH_REASONS = (*catalogue.FINISH_REASONS, "repetition")
REJECTION_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_SOURCES = ("device", "host", "p2p", "disk", "external_unspecified")

Values = float | Mapping[str, float]
"""A number, or one by the value of the only label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the numbers are made of."""

    stats: CoreStats
    finished: Mapping[str, int]
    rejected: Mapping[str, int]


def _none(_source: Source) -> float:
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A gauge or a counter of vLLM's."""

    name: str
    """Without `_total`, which client libraries append to counters."""
    kind: Literal["gauge", "counter"]
    help: str
    read: Callable[[Source], Values] = _none
    label: str = ""
    values: tuple[str, ...] = ()
    """Of the label; those that `read` leaves out are 0."""


def _gauge(name: str, help_: str, read: Callable[[Source], Values] = _none) -> Alias:
    return Alias(name=PREFIX + name, kind="gauge", help=help_, read=read)


def _counter(name: str, help_: str, read: Callable[[Source], Values] = _none) -> Alias:
    return Alias(name=PREFIX + name, kind="counter", help=help_, read=read)


def _usage(source: Source) -> float:
    return source.stats.num_used_blocks / max(source.stats.num_total_blocks, 1)


def _cached(source: Source) -> float:
    return source.stats.num_prefix_hit_tokens


def _queried(source: Source) -> float:
    return source.stats.num_prefix_queried_tokens


def _processed(source: Source) -> float:
    return source.stats.num_prompt_tokens + source.stats.num_prefix_hit_tokens


ALIASES = (
    _gauge("num_requests_running", "Sequences that run.", lambda source: source.stats.num_running),
    _gauge("num_requests_waiting", "Sequences that wait.", lambda source: source.stats.num_waiting),
    Alias(
        name=f"{PREFIX}num_requests_waiting_by_reason",
        kind="gauge",
        help="Sequences that wait, by why.",
        label="reason",
        values=("capacity", "deferred"),
        read=lambda source: {
            "capacity": source.stats.num_waiting - source.stats.num_held,
            "deferred": source.stats.num_held,
        },
    ),
    _gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", _usage),
    _gauge("gpu_cache_usage_perc", "The earlier name of kv_cache_usage_perc.", _usage),
    Alias(
        name=f"{PREFIX}engine_sleep_state",
        kind="gauge",
        help="1 for the state of sleep; this engine is always awake.",
        label="sleep_state",
        values=("awake", "weights_offloaded", "discard_all"),
        read=lambda source: {"awake": 1},
    ),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", _queried),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", _cached),
    _counter("gpu_prefix_cache_queries", "The earlier name of prefix_cache_queries.", _queried),
    _counter("gpu_prefix_cache_hits", "The earlier name of prefix_cache_hits.", _cached),
    _counter("external_prefix_cache_queries", "Tokens looked up in a cache outside: none."),
    _counter("external_prefix_cache_hits", "Tokens found in a cache outside: none."),
    _counter("mm_cache_queries", "Multimodal inputs looked up in a cache: none."),
    _counter("mm_cache_hits", "Multimodal inputs found in a cache: none."),
    _counter("num_preemptions", "Preemptions.", lambda source: source.stats.num_preemptions),
    _counter("prompt_tokens", "Prompt tokens processed.", _processed),
    Alias(
        name=f"{PREFIX}prompt_tokens_by_source",
        kind="counter",
        help="Prompt tokens processed, by where they came from.",
        label="source",
        values=PROMPT_SOURCES,
        read=lambda source: {
            "local_compute": source.stats.num_prompt_tokens,
            "local_cache_hit": source.stats.num_prefix_hit_tokens,
        },
    ),
    _counter("prompt_tokens_cached", "Prompt tokens taken from the cache.", _cached),
    Alias(
        name=f"{PREFIX}prompt_tokens_cached_by_source",
        kind="counter",
        help="Prompt tokens taken from a cache, by where it is.",
        label="source",
        values=CACHE_SOURCES,
        read=lambda source: {"device": source.stats.num_prefix_hit_tokens},
    ),
    _counter(
        "generation_tokens", "Tokens generated.", lambda source: source.stats.num_generated_tokens
    ),
    Alias(
        name=f"{PREFIX}request_success",
        kind="counter",
        help="Requests that ended, by why.",
        label="finished_reason",
        values=FINISH_REASONS,
        read=lambda source: source.finished,
    ),
    Alias(
        name=f"{PREFIX}admission_rejections",
        kind="counter",
        help="Requests refused because the queue is full, by the limit.",
        label="reason",
        values=REJECTION_REASONS,
        read=lambda source: {"max_num_queued_reqs": source.rejected["queue_full"]},
    ),
    _counter("spec_decode_num_drafts", "Speculative drafts: none."),
    _counter("spec_decode_num_draft_tokens", "Tokens of speculative drafts: none."),
    _counter("spec_decode_num_accepted_tokens", "Accepted tokens of drafts: none."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramAlias:
    """A histogram of vLLM's: which of ours it follows, in its own buckets."""

    name: str
    native: str
    """Name of the engine's histogram."""
    help: str
    buckets: tuple[float, ...] = field(default=())
    """Empty: 1, 2, 5, ... up to the model's context."""

    def bounds(self, max_model_len: int) -> tuple[float, ...]:
        return self.buckets or one_two_five(max_model_len)


def _follow(
    native: catalogue.Declared, buckets: tuple[float, ...] = (), *names: str
) -> tuple[HistogramAlias, ...]:
    own = native.name.removeprefix(catalogue.PREFIX)
    return tuple(
        HistogramAlias(
            name=PREFIX + name, native=native.name, help=native.help, buckets=tuple(buckets)
        )
        for name in (own, *names)
    )


HISTOGRAM_ALIASES = (
    *_follow(catalogue.TIME_TO_FIRST_TOKEN, FIRST_TOKEN_S),
    *_follow(catalogue.INTER_TOKEN, TOKEN_S, "time_per_output_token_seconds"),
    *_follow(catalogue.TIME_PER_TOKEN, TOKEN_S),
    *_follow(catalogue.LATENCY, REQUEST_S),
    *_follow(catalogue.QUEUE, REQUEST_S),
    *_follow(catalogue.INFERENCE, REQUEST_S),
    *_follow(catalogue.PREFILL, REQUEST_S),
    *_follow(catalogue.DECODE, REQUEST_S),
    *_follow(catalogue.STEP_SIZE, STEP_TOKENS),
    *_follow(catalogue.PARAMS_N, COMPLETIONS),
    *_follow(catalogue.PREEMPTED, PREEMPTIONS),
    *_follow(catalogue.PROMPT_TOKENS),
    *_follow(catalogue.GENERATION_TOKENS),
    *_follow(catalogue.LONGEST),
    *_follow(catalogue.PARAMS_MAX_TOKENS),
    *_follow(catalogue.COMPUTED),
)
