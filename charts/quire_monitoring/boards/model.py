"""One model's latency and throughput, by replica: where time goes, and what is asked for."""

from dataclasses import replace

from quire_monitoring.boards.variables import DEPLOYMENT, NAMESPACE, REPLICA
from quire_monitoring.panels import Board, Heat, Lines, Query, Row
from quire_monitoring.selectors import ENGINE, increase, mean, quantile, rate, share

_P = "quire_engine_"


def _by_replica(title: str, help_: str, histogram: str) -> Lines:
    return Lines(
        title=title,
        help=help_,
        queries=[Query(quantile(_P + histogram, ENGINE, "pod"), "{{pod}}")],
        unit="s",
    )


def _heat(title: str, help_: str, histogram: str, unit: str) -> Heat:
    return Heat(
        title=title,
        help=help_,
        queries=[Query(rate(f"{_P}{histogram}_bucket", ENGINE, "le"), "{{le}}")],
        unit=unit,
    )


def _gauge(title: str, help_: str, name: str, unit: str) -> Lines:
    return Lines(
        title=title,
        help=help_,
        queries=[Query(f"sum by (pod) ({_P}{name}{{{ENGINE}}})", "{{pod}}")],
        unit=unit,
    )


def _rate(title: str, help_: str, counter: str, unit: str, by: str = "pod") -> Lines:
    return Lines(
        title=title,
        help=help_,
        queries=[Query(rate(_P + counter, ENGINE, by), f"{{{{{by}}}}}")],
        unit=unit,
    )


DISTRIBUTIONS = Row(
    "How long requests take",
    (
        _heat("First token", "Arrival to first token.", "time_to_first_token_seconds", "s"),
        _heat(
            "Between tokens",
            "Two bands: steps that decode only, and steps that share with a prefill.",
            "inter_token_latency_seconds",
            "s",
        ),
        _heat("Whole request", "Arrival to last token.", "e2e_request_latency_seconds", "s"),
    ),
)
REPLICAS = Row(
    "By replica, at the chosen quantile",
    (
        _by_replica("First token", "Arrival to first token.", "time_to_first_token_seconds"),
        _by_replica(
            "Between tokens", "Between tokens of one completion.", "inter_token_latency_seconds"
        ),
        _by_replica("Whole request", "Arrival to last token.", "e2e_request_latency_seconds"),
        _by_replica("Queue", "Arrival to first scheduled step.", "request_queue_time_seconds"),
        _by_replica(
            "Prefill", "First scheduled step to first token.", "request_prefill_time_seconds"
        ),
        _by_replica("Decode", "First token to last token.", "request_decode_time_seconds"),
    ),
)
THROUGHPUT = Row(
    "Throughput",
    (
        _rate("Tokens generated", "Per second.", "generation_tokens_total", "short"),
        _rate(
            "Prompt tokens by source",
            "Computed here, or found in the cache.",
            "prompt_tokens_by_source_total",
            "short",
            by="source",
        ),
        Lines(
            title="Tokens in a step",
            help="Mean over steps: how well prefill and decode fill the budget of a step.",
            queries=[
                Query(mean(f"{_P}iteration_tokens_total", ENGINE, "pod"), "{{pod}}"),
            ],
            unit="short",
        ),
        _rate("Steps", "Steps of the engine per second.", "steps_total", "ops"),
        Lines(
            title="Busy",
            help="Share of time spent in steps; the rest waits for work.",
            queries=[Query(rate(f"{_P}busy_seconds_total", ENGINE, "pod"), "{{pod}}")],
            unit="percentunit",
            max_value=1,
        ),
        _gauge(
            "Decode step", "Moving average of a step that only decodes.", "decode_step_seconds", "s"
        ),
        _gauge(
            "Prefill speed",
            "Moving average, in tokens per second.",
            "prefill_tokens_per_second",
            "short",
        ),
        _gauge(
            "Prompt tokens to compute",
            "Of waiting and running requests: how much prefill is ahead.",
            "num_waiting_uncached_tokens",
            "short",
        ),
        _rate("Requests refused", "By why.", "admission_rejections_total", "reqps", by="reason"),
        Lines(
            title="Roofline share",
            help="Share of the device's peak that the last steps reached: decode of its memory "
            "bandwidth, prefill of its arithmetic.",
            queries=[
                Query(f"avg by (pod, phase) ({_P}roofline_ratio{{{ENGINE}}})", "{{pod}} {{phase}}")
            ],
            unit="percentunit",
            max_value=1,
        ),
        Lines(
            title="Step time",
            help="Mean over steps, by phase.",
            queries=[Query(mean(f"{_P}step_seconds", ENGINE, "pod, phase"), "{{pod}} {{phase}}")],
            unit="s",
        ),
        _gauge(
            "Time since the last step",
            "While there is work; 0 while there is none.",
            "last_step_age_seconds",
            "s",
        ),
    ),
)
_WAITING = (
    Lines(
        title="Waiting, by reason",
        help="Requests not yet begun with, by what they wait for.",
        queries=[
            Query(
                f"sum by (reason) ({_P}num_requests_waiting_by_reason{{{ENGINE}}})",
                "{{reason}}",
            )
        ],
        unit="short",
        is_stacked=True,
    ),
    _rate(
        "Time waited, by reason",
        "Seconds that requests waited, per second: the mean number that waits for that.",
        "wait_seconds_total",
        "short",
        by="reason",
    ),
    _rate(
        "Tokens wasted",
        "Computed again after preemptions, or for clients that left; per second.",
        "wasted_tokens_total",
        "short",
        by="reason",
    ),
    Lines(
        title="Kernels compiled late",
        help="Kernels of a GPU that requests waited for, because warming up missed them; 0 is "
        "right.",
        queries=[
            Query(increase(f"{_P}kernel_compiles_after_ready_total", ENGINE, "pod"), "{{pod}}"),
        ],
        unit="short",
    ),
)
WAITING = Row(
    "Why requests wait, and what is wasted",
    tuple(replace(panel, width=6) for panel in _WAITING),
)
MEMORY = Row(
    "Load and memory",
    (
        _gauge("Running", "Requests that take part in steps.", "num_requests_running", "short"),
        _gauge("Waiting", "Requests not yet begun with.", "num_requests_waiting", "short"),
        Lines(
            title="KV cache",
            help="Share of blocks that live requests hold.",
            queries=[Query(f"max by (pod) ({_P}kv_cache_usage_ratio{{{ENGINE}}})", "{{pod}}")],
            unit="percentunit",
            limits=((0.95, "red"),),
            max_value=1,
        ),
        _rate(
            "Preemptions",
            "Requests that gave up their blocks and were computed again.",
            "num_preemptions_total",
            "ops",
        ),
        Lines(
            title="Prompt tokens found in the cache",
            help="Share of prompt tokens that were looked up.",
            queries=[
                Query(
                    share(
                        rate(f"{_P}prefix_cache_hits_total", ENGINE, "pod"),
                        rate(f"{_P}prefix_cache_queries_total", ENGINE, "pod"),
                    ),
                    "{{pod}}",
                )
            ],
            unit="percentunit",
            max_value=1,
        ),
        Lines(
            title="Memory of the process",
            help="Resident memory on the host, GPUs apart. Weights are mapped and count too.",
            queries=[
                Query(
                    f"sum by (pod) (process_resident_memory_bytes{{{ENGINE}}}"
                    f" and on (namespace, pod, instance) {_P}steps_total{{{ENGINE}}})",
                    "{{pod}}",
                )
            ],
            unit="bytes",
        ),
    ),
)
REQUESTS = Row(
    "What is asked for",
    (
        _heat("Prompt", "Tokens of prompts.", "request_prompt_tokens", "short"),
        _heat("Answer", "Tokens generated for a request.", "request_generation_tokens", "short"),
        Lines(
            title="How requests end",
            help="stop: by themselves; length: at a limit; abort: the client left; error: ours.",
            queries=[
                Query(
                    rate(f"{_P}request_success_total", ENGINE, "finished_reason"),
                    "{{finished_reason}}",
                )
            ],
            unit="reqps",
            is_stacked=True,
        ),
    ),
)

MODEL = Board(
    uid="quire-model",
    title="Quire / Model",
    help="One model's latency and throughput, by replica.",
    rows=(DISTRIBUTIONS, REPLICAS, THROUGHPUT, WAITING, MEMORY, REQUESTS),
    variables=(NAMESPACE, DEPLOYMENT, REPLICA),
)
