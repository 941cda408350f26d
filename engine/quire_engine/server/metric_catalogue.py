"""Every metric of the engine, declared once: the README's table is made from this.

Names never change: dashboards, alerts and autoscalers are built on them. Every series also carries
`model_name` and `engine`; no label holds what a client wrote.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PREFIX = "quire_engine_"
COMMON_LABELS = ("model_name", "engine")

LATENCY_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 20, 40, 60, 120, 240, 480, 960, 1920)
FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 60),
)
WAIT_S = (0.001, *FIRST_TOKEN_S)
TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10),
)
STEP_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30),
)
STEP_TOKENS = tuple(2**power for power in range(15))
COMPLETIONS = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
MAX_TOKENS = 2**24
"""No model has a longer context: where the longest table of token buckets ends."""

FINISH_REASONS = ("stop", "length", "abort", "error")
REJECTION_REASONS = ("invalid", "queue_full", "draining")
WAIT_REASONS = ("seats", "kv_space", "budget", "shared_prefix")
WASTE_REASONS = ("preempted", "overrun", "aborted", "failed")
PHASES = ("prefill", "decode", "mixed")
SLO_RESULTS = ("met", "slow_first_token", "slow_tokens", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One metric as Prometheus shows it."""

    name: str
    """With its prefix and, for counters, `_total`."""
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    """Besides the common ones."""
    values: tuple[str, ...] = ()
    """All values of the only label, where they are known beforehand."""
    buckets: tuple[float, ...] = ()
    """Upper bounds; `tokens` ends where the model's context does."""

    @property
    def family(self) -> str:
        """The name without `_total`, as client libraries want it."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


def one_two_five(limit: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, 50, ... up to `limit`."""
    steps = (mantissa * 10**power for power in range(10) for mantissa in (1, 2, 5))
    return tuple(step for step in steps if step <= limit)


TOKENS = one_two_five(MAX_TOKENS)


def _gauge(name: str, help_: str, label: str = "", values: tuple[str, ...] = ()) -> Declared:
    labels = (label,) if label else ()
    return Declared(name=PREFIX + name, kind="gauge", help=help_, labels=labels, values=values)


def _counter(name: str, help_: str, label: str = "", values: tuple[str, ...] = ()) -> Declared:
    labels = (label,) if label else ()
    name = f"{PREFIX}{name}_total"
    return Declared(name=name, kind="counter", help=help_, labels=labels, values=values)


def _histogram(
    name: str,
    help_: str,
    buckets: Iterable[float],
    label: str = "",
    values: tuple[str, ...] = (),
) -> Declared:
    return Declared(
        name=PREFIX + name,
        kind="histogram",
        help=help_,
        labels=(label,) if label else (),
        values=values,
        buckets=tuple(buckets),
    )


STATE = (
    _gauge("num_requests_running", "Sequences that take part in steps."),
    _gauge("num_requests_waiting", "Sequences that wait to be admitted."),
    _gauge(
        "num_requests_waiting_by_reason",
        "Sequences that wait, by what for: `seats` (--max-num-seqs run already), `kv_space` (their "
        "blocks), `budget` (the step's tokens are spoken for), `shared_prefix` (another sequence "
        "is computing a prefix of theirs).",
        "reason",
        WAIT_REASONS,
    ),
    _gauge(
        "num_waiting_uncached_tokens",
        "Prompt tokens still to compute, of waiting and running sequences.",
    ),
    _gauge(
        "kv_cache_usage_ratio", "Share of the KV cache's blocks that live sequences hold, 0 to 1."
    ),
    _gauge("kv_cache_total_blocks", "Blocks of the KV cache."),
    _gauge("prefill_tokens_per_second", "Moving average of the speed of prefill; 0 before it."),
    _gauge(
        "decode_step_seconds",
        "Moving average of the duration of a step that only decodes; 0 before the first.",
    ),
    _gauge(
        "roofline_ratio",
        "Share of the device's peak that the last steps reached: `decode` of its memory bandwidth, "
        "`prefill` of its arithmetic. No series where the peak is unknown.",
        "phase",
    ),
    _gauge(
        "last_step_age_seconds",
        "Time since the last progress while there is work; 0 while there is none. Grows when the "
        "engine hangs.",
    ),
)
TOTALS = (
    _counter("steps", "Steps of the engine."),
    _counter("busy_seconds", "Time spent in steps."),
    _counter(
        "kernel_compiles_after_ready",
        "Kernels of a GPU that were compiled, or loaded from disk, while requests waited: 0 "
        "unless warming up missed a variant.",
    ),
    _counter("num_preemptions", "Sequences that gave up their blocks and were computed again."),
    _counter("prompt_tokens", "Prompt tokens processed, computed or taken from the cache."),
    _counter("prompt_tokens_cached", "Prompt tokens taken from the cache."),
    _counter(
        "prompt_tokens_by_source",
        "Prompt tokens, by where they came from.",
        "source",
        ("local_compute", "local_cache_hit"),
    ),
    _counter("generation_tokens", "Tokens generated."),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    _counter(
        "wait_seconds",
        "Time that sequences waited, added up over sequences, by what for (reasons as in "
        "num_requests_waiting_by_reason).",
        "reason",
        WAIT_REASONS,
    ),
    _counter(
        "wasted_tokens",
        "Tokens computed in vain: `preempted` (computed again after a preemption), `overrun` (for "
        "a sequence that had ended while the step was in flight), `aborted` and `failed` "
        "(generated for requests that ended so).",
        "reason",
        WASTE_REASONS,
    ),
)
REQUESTS = (
    _counter("request_success", "Requests that ended, by why.", "finished_reason", FINISH_REASONS),
    _counter("admission_rejections", "Requests refused, by why.", "reason", REJECTION_REASONS),
    _counter(
        "slo_requests",
        "Requests judged by --slo-ttft-ms and --slo-itl-ms: `met`, `slow_first_token`, "
        "`slow_tokens` (mean time per token), `failed`. Aborted and refused ones are not judged. "
        "No series without targets.",
        "result",
        SLO_RESULTS,
    ),
)
DESCRIPTIONS = (
    Declared(
        name=f"{PREFIX}info",
        kind="gauge",
        help="1, with what this engine is in labels.",
        labels=("version", "dtype", "device"),
    ),
    Declared(
        name=f"{PREFIX}cache_config_info",
        kind="gauge",
        help="1, with the shape of the KV cache in labels.",
        labels=("block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"),
    ),
    _gauge("startup_seconds", "Duration of start-up, by phase.", "phase"),
    _gauge("slo_target_seconds", "The targets given, by what they bound.", "target"),
)
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S
)
INTER_TOKEN = _histogram(
    "inter_token_latency_seconds", "Time between tokens of one completion.", TOKEN_S
)
TIME_PER_TOKEN = _histogram(
    "request_time_per_output_token_seconds", "Mean time per token of a request.", TOKEN_S
)
LATENCY = _histogram("e2e_request_latency_seconds", "Arrival to last token.", LATENCY_S)
QUEUE = _histogram("request_queue_time_seconds", "Arrival to first scheduled step.", WAIT_S)
INFERENCE = _histogram(
    "request_inference_time_seconds", "First scheduled step to last token.", LATENCY_S
)
PREFILL = _histogram("request_prefill_time_seconds", "First scheduled step to first token.", WAIT_S)
DECODE = _histogram("request_decode_time_seconds", "First token to last token.", LATENCY_S)
PROMPT_TOKENS = _histogram("request_prompt_tokens", "Tokens of the prompt.", TOKENS)
GENERATION_TOKENS = _histogram(
    "request_generation_tokens", "Tokens generated for a request.", TOKENS
)
LONGEST = _histogram(
    "request_max_num_generation_tokens", "Tokens of the longest completion.", TOKENS
)
COMPUTED = _histogram(
    "request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache.", TOKENS
)
PARAMS_N = _histogram("request_params_n", "Completions asked for.", COMPLETIONS)
PARAMS_MAX_TOKENS = _histogram("request_params_max_tokens", "The max_tokens asked for.", TOKENS)
PREEMPTED = _histogram(
    "request_num_preemptions", "Times that a request was preempted.", PREEMPTIONS
)
STEP_SIZE = _histogram("iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS)
STEP_TIME = _histogram(
    "step_seconds",
    "Duration of a step, by what it computed: `prefill`, `decode`, or both (`mixed`).",
    STEP_S,
    "phase",
    PHASES,
)
HISTOGRAMS = (
    *(TIME_TO_FIRST_TOKEN, INTER_TOKEN, TIME_PER_TOKEN, LATENCY, QUEUE, INFERENCE, PREFILL, DECODE),
    *(PROMPT_TOKENS, GENERATION_TOKENS, LONGEST, COMPUTED, PARAMS_N, PARAMS_MAX_TOKENS, PREEMPTED),
    *(STEP_SIZE, STEP_TIME),
)
CATALOGUE = (*STATE, *TOTALS, *REQUESTS, *HISTOGRAMS, *DESCRIPTIONS)
