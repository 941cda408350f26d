"""Prometheus metrics of one engine, declared once in the tables of this module.

Steps cost next to nothing: gauges and counters are read from the core's totals when Prometheus
asks, and only histograms are updated as things happen. `vllm:` names show the same numbers.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from quire_engine.core.messages import CoreStats
from quire_engine.errors import ConfigError

PREFIX = "quire_engine_"
LABELS = ("model_name", "engine")
ENGINE_LABEL = "0"
"""vLLM's dashboards select by it; each of our engines has a process and a port of its own."""

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
STEP_TOKENS = tuple(2**power for power in range(15))
COUNTS = (1, 2, 3, 4, 5, 10, 20)
FINISH_REASONS = ("stop", "length", "abort", "error")
REJECTION_REASONS = ("invalid", "queue_full", "draining")


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that the core's state holds already."""

    name: str
    help: str
    read: Callable[[CoreStats], float]
    vllm: tuple[str, ...] = ()


GAUGES = (
    Reading(
        "num_requests_running",
        "Sequences that take part in steps.",
        lambda stats: stats.num_running,
        ("num_requests_running",),
    ),
    Reading(
        "num_requests_waiting",
        "Sequences that wait to be admitted.",
        lambda stats: stats.num_waiting,
        ("num_requests_waiting",),
    ),
    Reading(
        "num_waiting_uncached_tokens",
        "Prompt tokens still to compute, of waiting and running sequences.",
        lambda stats: stats.num_waiting_uncached_tokens,
    ),
    Reading(
        "kv_cache_usage_ratio",
        "Share of the KV cache's blocks that live sequences hold, 0 to 1.",
        lambda stats: stats.num_used_blocks / max(stats.num_total_blocks, 1),
        ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    ),
    Reading(
        "kv_cache_total_blocks", "Blocks of the KV cache.", lambda stats: stats.num_total_blocks
    ),
    Reading(
        "prefill_tokens_per_second",
        "Moving average of the speed of prefill; 0 before the first.",
        lambda stats: stats.prefill_tokens_per_s,
    ),
    Reading(
        "decode_step_seconds",
        "Moving average of the duration of a step that only decodes; 0 before the first.",
        lambda stats: stats.decode_step_s,
    ),
)
COUNTERS = (
    Reading("steps", "Steps of the engine.", lambda stats: stats.num_steps),
    Reading("busy_seconds", "Time spent in steps.", lambda stats: stats.busy_s),
    Reading(
        "num_preemptions",
        "Sequences that gave up their blocks and were computed again.",
        lambda stats: stats.num_preemptions,
        ("num_preemptions",),
    ),
    Reading(
        "prompt_tokens",
        "Prompt tokens processed, computed or taken from the cache.",
        lambda stats: stats.num_prompt_tokens + stats.num_prefix_hit_tokens,
        ("prompt_tokens",),
    ),
    Reading(
        "prompt_tokens_cached",
        "Prompt tokens taken from the cache.",
        lambda stats: stats.num_prefix_hit_tokens,
        ("prompt_tokens_cached",),
    ),
    Reading(
        "generation_tokens",
        "Tokens generated.",
        lambda stats: stats.num_generated_tokens,
        ("generation_tokens",),
    ),
    Reading(
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda stats: stats.num_prefix_queried_tokens,
        ("prefix_cache_queries", "gpu_prefix_cache_queries"),
    ),
    Reading(
        "prefix_cache_hits",
        "Prompt tokens found in the prefix cache.",
        lambda stats: stats.num_prefix_hit_tokens,
        ("prefix_cache_hits", "gpu_prefix_cache_hits"),
    ),
)


class Histogram:
    """Counts of values by bucket; `observe` costs a bisection."""

    __slots__ = ("bounds", "counts", "help", "name", "total", "vllm")

    def __init__(
        self, name: str, help_: str, bounds: Sequence[float], vllm: tuple[str, ...] | None = None
    ) -> None:
        self.name = name
        self.help = help_
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.vllm = (name,) if vllm is None else vllm

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it), the last bound being +Inf."""
        cumulative = 0
        result: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            cumulative += count
            result.append((str(bound) if bound != float("inf") else "+Inf", cumulative))
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """What one request was and took; durations in seconds, None where it ended early."""

    finish_reason: str
    num_generation_tokens: int
    """Over all completions."""
    max_num_generation_tokens: int
    """Of the longest completion."""
    num_completions: int
    max_tokens: int | None
    latency_s: float
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None


class EngineMetrics(Collector):
    """The state that Prometheus sees. Written by the event loop, read by the scraper's thread."""

    def __init__(
        self, model_name: str, *, max_model_len: int, cache_info: dict[str, str], compat: str = ""
    ) -> None:
        self._labels = (model_name, ENGINE_LABEL)
        self._cache_info = cache_info
        self._has_vllm_names = compat == "vllm"
        self._stats = CoreStats()
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._rejected = dict.fromkeys(REJECTION_REASONS, 0)
        tokens = _one_two_five(max_model_len)
        self.first_token = Histogram(
            "time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S
        )
        self.inter_token = Histogram(
            "inter_token_latency_seconds",
            "Time between tokens of one completion.",
            TOKEN_S,
            ("inter_token_latency_seconds", "time_per_output_token_seconds"),
        )
        self._time_per_token = Histogram(
            "request_time_per_output_token_seconds", "Mean time per token of a request.", TOKEN_S
        )
        self._latency = Histogram(
            "e2e_request_latency_seconds", "Arrival to last token.", LATENCY_S
        )
        self._queue = Histogram(
            "request_queue_time_seconds", "Arrival to first scheduled step.", WAIT_S
        )
        self._inference = Histogram(
            "request_inference_time_seconds", "First scheduled step to last token.", LATENCY_S
        )
        self._prefill = Histogram(
            "request_prefill_time_seconds", "First scheduled step to first token.", WAIT_S
        )
        self._decode = Histogram(
            "request_decode_time_seconds", "First token to last token.", LATENCY_S
        )
        self._prompt_tokens = Histogram("request_prompt_tokens", "Tokens of the prompt.", tokens)
        self._generation_tokens = Histogram(
            "request_generation_tokens", "Tokens generated for a request.", tokens
        )
        self._longest = Histogram(
            "request_max_num_generation_tokens", "Tokens of the longest completion.", tokens
        )
        self._computed = Histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache.", tokens
        )
        self._params_n = Histogram("request_params_n", "Completions asked for.", (1, 2, 5, 10, 20))
        self._params_max_tokens = Histogram(
            "request_params_max_tokens", "The max_tokens asked for.", tokens
        )
        self._preemptions = Histogram(
            "request_num_preemptions", "Times that a request was preempted.", COUNTS
        )
        self._step_tokens = Histogram(
            "iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS
        )
        self._histograms = [value for value in vars(self).values() if isinstance(value, Histogram)]

    def on_step(self, stats: CoreStats) -> None:
        self._stats = stats
        if stats.step_num_tokens:
            self._step_tokens.observe(stats.step_num_tokens)

    def on_rejected(self, reason: str) -> None:
        self._rejected[reason] += 1

    def on_finished(self, request: FinishedRequest) -> None:
        self._finished[request.finish_reason] += 1
        num_tokens = request.num_generation_tokens
        self._latency.observe(request.latency_s)
        self._generation_tokens.observe(num_tokens)
        self._longest.observe(request.max_num_generation_tokens)
        self._params_n.observe(request.num_completions)
        self._preemptions.observe(request.num_preemptions)
        if request.max_tokens is not None:
            self._params_max_tokens.observe(request.max_tokens)
        if request.num_prompt_tokens is not None:
            self._prompt_tokens.observe(request.num_prompt_tokens)
            self._computed.observe(request.num_prompt_tokens - request.num_cached_tokens)
        self._observe_phases(request)

    def _observe_phases(self, request: FinishedRequest) -> None:
        if request.queue_s is not None:
            self._queue.observe(request.queue_s)
        if request.prefill_s is None or request.decode_s is None:
            return
        self._prefill.observe(request.prefill_s)
        self._decode.observe(request.decode_s)
        self._inference.observe(request.prefill_s + request.decode_s)
        if request.max_num_generation_tokens > 1:
            per_token = request.decode_s / (request.max_num_generation_tokens - 1)
            self._time_per_token.observe(per_token)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, under each of its names."""
        stats = self._stats
        for gauge in GAUGES:
            for name in self._names(gauge.name, gauge.vllm):
                yield self._gauge(name, gauge.help, gauge.read(stats))
        for counter in COUNTERS:
            for name in self._names(counter.name, counter.vllm):
                yield self._counter(name, counter.help, counter.read(stats))
        for histogram in self._histograms:
            for name in self._names(histogram.name, histogram.vllm):
                yield self._histogram(name, histogram)
        yield from self._labelled(stats)

    def _labelled(self, stats: CoreStats) -> Iterator[Metric]:
        sources = {
            "local_compute": stats.num_prompt_tokens,
            "local_cache_hit": stats.num_prefix_hit_tokens,
        }
        waiting = {"capacity": stats.num_waiting, "deferred": 0}
        for name in self._names("request_success", ("request_success",)):
            yield self._by(CounterMetricFamily, name, "finished_reason", self._finished)
        for name in self._names("admission_rejections", ("admission_rejections",)):
            yield self._by(CounterMetricFamily, name, "reason", self._rejected)
        for name in self._names("prompt_tokens_by_source", ("prompt_tokens_by_source",)):
            yield self._by(CounterMetricFamily, name, "source", sources)
        if self._has_vllm_names:
            name = "vllm:num_requests_waiting_by_reason"
            yield self._by(GaugeMetricFamily, name, "reason", waiting)
        for name in self._names("cache_config_info", ("cache_config_info",)):
            info = GaugeMetricFamily(
                name, "Shape of the KV cache.", labels=(*LABELS, *self._cache_info)
            )
            info.add_metric((*self._labels, *self._cache_info.values()), 1)
            yield info

    def _names(self, name: str, vllm: tuple[str, ...]) -> list[str]:
        return [PREFIX + name, *(f"vllm:{alias}" for alias in vllm if self._has_vllm_names)]

    def _gauge(self, name: str, help_: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, help_, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, help_: str, value: float) -> Metric:
        family = CounterMetricFamily(name, help_, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _histogram(self, name: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, histogram.help, labels=LABELS)
        family.add_metric(self._labels, histogram.buckets(), histogram.total)
        return family

    def _by(
        self,
        family_type: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        label: str,
        values: dict[str, int],
    ) -> Metric:
        family = family_type(name, LABELLED_HELP[label], labels=(*LABELS, label))
        for value, number in values.items():
            family.add_metric((*self._labels, value), number)
        return family


LABELLED_HELP = {
    "finished_reason": "Requests that ended, by why.",
    "reason": "Requests refused, or waiting, by why.",
    "source": "Prompt tokens, by where they came from.",
}


class MetricsServer:
    """Serves /metrics from a thread of its own, with a registry of its own."""

    def __init__(self, *, host: str, port: int) -> None:
        """Bind and start, with nothing but the process to tell of.

        Raises:
            ConfigError: the port is taken.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {error.strerror} (--metrics-port)"
            ) from error

    @property
    def port(self) -> int:
        return self._server.server_port

    def add(self, metrics: Collector) -> None:
        self._registry.register(metrics)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _one_two_five(limit: int) -> list[float]:
    """Return 1, 2, 5, 10, 20, 50, ... up to `limit`."""
    steps = (mantissa * 10**power for power in range(10) for mantissa in (1, 2, 5))
    return [step for step in steps if step <= limit]
