"""The state that Prometheus sees of one engine.

Steps cost next to nothing: gauges and counters are read from the core's totals when Prometheus
asks, and only histograms are updated as things happen. Names, labels and help are those of
`metric_catalogue`; `vllm_metrics` shows the same numbers under vLLM's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from quire_engine.core.messages import CoreStats, Roofline
from quire_engine.server import metric_catalogue as catalogue
from quire_engine.server.histogram import Histogram
from quire_engine.server.metric_catalogue import COMMON_LABELS, Declared
from quire_engine.server.vllm_metrics import ALIASES, HISTOGRAM_ALIASES, Alias, Source, Values

ENGINE_LABEL = "0"
"""vLLM's dashboards select by it; each of our engines has a process and a port of its own."""


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

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time per token after the first; None without any."""
        if self.decode_s is None or self.max_num_generation_tokens < 2:
            return None
        return self.decode_s / (self.max_num_generation_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What does not change while the engine runs."""

    max_model_len: int
    cache_info: Mapping[str, str]
    """Labels of cache_config_info."""
    info: Mapping[str, str] = field(default_factory=dict)
    startup_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase of start-up."""
    roofline: Roofline | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets:
    """What requests are judged by; None: not by that."""

    first_token_s: float | None = None
    seconds_per_token: float | None = None

    @classmethod
    def from_ms(cls, *, first_token_ms: float | None, per_token_ms: float | None) -> Self:
        return cls(
            first_token_s=None if first_token_ms is None else first_token_ms / 1e3,
            seconds_per_token=None if per_token_ms is None else per_token_ms / 1e3,
        )

    def judge(self, request: FinishedRequest) -> str | None:
        """Return one of SLO_RESULTS; None for a request that says nothing about the engine."""
        if self == NO_TARGETS or request.finish_reason == "abort":
            return None
        if request.finish_reason == "error":
            return "failed"
        if request.queue_s is None or request.prefill_s is None:
            return None
        if _exceeds(request.queue_s + request.prefill_s, self.first_token_s):
            return "slow_first_token"
        if _exceeds(request.seconds_per_token, self.seconds_per_token):
            return "slow_tokens"
        return "met"


NO_TARGETS = SloTargets()


class Distribution:
    """One of the engine's histograms, in its own buckets and in those of the names it has."""

    __slots__ = ("_histograms",)

    def __init__(self, *histograms: Histogram) -> None:
        self._histograms = histograms

    def observe(self, value: float, times: int = 1) -> None:
        for histogram in self._histograms:
            histogram.observe(value, times)


class EngineMetrics(Collector):
    """Written by the event loop, read by the scraper's thread."""

    def __init__(
        self,
        model_name: str,
        description: EngineDescription,
        *,
        targets: SloTargets = NO_TARGETS,
        compat: str = "",
    ) -> None:
        self._labels = (model_name, ENGINE_LABEL)
        self._description = description
        self._targets = targets
        self._has_vllm_names = compat == "vllm"
        self._stats = CoreStats()
        self._stalled_s: Callable[[], float] = _never_stalled
        self._finished = dict.fromkeys(catalogue.FINISH_REASONS, 0)
        self._rejected = dict.fromkeys(catalogue.REJECTION_REASONS, 0)
        self._judged = dict.fromkeys(catalogue.SLO_RESULTS, 0)
        self._waited_s = dict.fromkeys(catalogue.WAIT_REASONS, 0.0)
        self._num_wasted = {"aborted": 0, "failed": 0}
        self._native: dict[str, dict[str, Histogram]] = {}
        """By name and, where there is a label, its value; else "". """
        self._aliased: dict[str, Histogram] = {}
        new = self._new_distribution
        self.first_token = new(catalogue.TIME_TO_FIRST_TOKEN)
        self.inter_token = new(catalogue.INTER_TOKEN)
        self._time_per_token = new(catalogue.TIME_PER_TOKEN)
        self._latency = new(catalogue.LATENCY)
        self._queue = new(catalogue.QUEUE)
        self._inference = new(catalogue.INFERENCE)
        self._prefill = new(catalogue.PREFILL)
        self._decode = new(catalogue.DECODE)
        self._prompt_tokens = new(catalogue.PROMPT_TOKENS)
        self._generation_tokens = new(catalogue.GENERATION_TOKENS)
        self._longest = new(catalogue.LONGEST)
        self._computed = new(catalogue.COMPUTED)
        self._params_n = new(catalogue.PARAMS_N)
        self._params_max_tokens = new(catalogue.PARAMS_MAX_TOKENS)
        self._preemptions = new(catalogue.PREEMPTED)
        self._step_size = new(catalogue.STEP_SIZE)
        self._step_s = {phase: new(catalogue.STEP_TIME, phase) for phase in catalogue.PHASES}

    def watch_progress(self, stalled_s: Callable[[], float]) -> None:
        """Report what this returns: the seconds without progress while there is work."""
        self._stalled_s = stalled_s

    def on_step(self, stats: CoreStats) -> None:
        elapsed_s = stats.busy_s - self._stats.busy_s
        if stats.num_steps != self._stats.num_steps:
            self._on_computed(stats)
        self._stats = stats
        for reason, num_waiting in waiting_by_reason(stats).items():
            if num_waiting:
                self._waited_s[reason] += num_waiting * elapsed_s

    def on_rejected(self, reason: str) -> None:
        self._rejected[reason] += 1

    def on_finished(self, request: FinishedRequest) -> None:
        self._finished[request.finish_reason] += 1
        num_tokens = request.num_generation_tokens
        if request.finish_reason in WASTE_OF:
            self._num_wasted[WASTE_OF[request.finish_reason]] += num_tokens
        if (result := self._targets.judge(request)) is not None:
            self._judged[result] += 1
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

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, under each of its names."""
        values = self._values(self._stats)
        for declared in (*catalogue.STATE, *catalogue.TOTALS, *catalogue.REQUESTS):
            yield self._numbers(declared, values[declared.name.removeprefix(catalogue.PREFIX)])
        for declared in catalogue.HISTOGRAMS:
            yield self._histogram(declared)
        for declared in catalogue.DESCRIPTIONS:
            yield self._described(declared)
        if self._has_vllm_names:
            yield from self._vllm()

    def _new_distribution(self, declared: Declared, value: str = "") -> Distribution:
        max_model_len = self._description.max_model_len
        native = Histogram(bounds_of(declared, max_model_len))
        self._native.setdefault(declared.name, {})[value] = native
        histograms = {native.bounds: native}
        if self._has_vllm_names:
            for alias in HISTOGRAM_ALIASES:
                if alias.native == declared.name:
                    histogram = Histogram(alias.bounds(max_model_len))
                    histogram = histograms.setdefault(histogram.bounds, histogram)
                    self._aliased[alias.name] = histogram
        return Distribution(*histograms.values())

    def _on_computed(self, stats: CoreStats) -> None:
        if not stats.step_num_tokens:
            return
        self._step_size.observe(stats.step_num_tokens)
        num_prefill = stats.step_num_prefill_tokens
        is_mixed = 0 < num_prefill < stats.step_num_tokens
        phase = "mixed" if is_mixed else "prefill" if num_prefill else "decode"
        self._step_s[phase].observe(stats.step_s)

    def _observe_phases(self, request: FinishedRequest) -> None:
        if request.queue_s is not None:
            self._queue.observe(request.queue_s)
        if request.prefill_s is None or request.decode_s is None:
            return
        self._prefill.observe(request.prefill_s)
        self._decode.observe(request.decode_s)
        self._inference.observe(request.prefill_s + request.decode_s)
        if request.seconds_per_token is not None:
            self._time_per_token.observe(request.seconds_per_token)

    def _values(self, stats: CoreStats) -> dict[str, Values]:
        """Return the gauges and counters, by name without prefix."""
        return {
            "num_requests_running": stats.num_running,
            "num_requests_waiting": stats.num_waiting,
            "num_requests_waiting_by_reason": waiting_by_reason(stats),
            "num_waiting_uncached_tokens": stats.num_waiting_uncached_tokens,
            "kv_cache_usage_ratio": stats.num_used_blocks / max(stats.num_total_blocks, 1),
            "kv_cache_total_blocks": stats.num_total_blocks,
            "prefill_tokens_per_second": stats.prefill_tokens_per_s,
            "decode_step_seconds": stats.decode_step_s,
            "roofline_ratio": self._roofline(stats),
            "last_step_age_seconds": self._stalled_s(),
            "steps_total": stats.num_steps,
            "busy_seconds_total": stats.busy_s,
            "kernel_compiles_after_ready_total": stats.num_compiles_after_ready,
            "num_preemptions_total": stats.num_preemptions,
            "prompt_tokens_total": stats.num_prompt_tokens + stats.num_prefix_hit_tokens,
            "prompt_tokens_cached_total": stats.num_prefix_hit_tokens,
            "prompt_tokens_by_source_total": {
                "local_compute": stats.num_prompt_tokens,
                "local_cache_hit": stats.num_prefix_hit_tokens,
            },
            "generation_tokens_total": stats.num_generated_tokens,
            "prefix_cache_queries_total": stats.num_prefix_queried_tokens,
            "prefix_cache_hits_total": stats.num_prefix_hit_tokens,
            "wait_seconds_total": self._waited_s,
            "wasted_tokens_total": {
                "preempted": stats.num_recomputed_tokens,
                "overrun": stats.num_overrun_tokens,
                **self._num_wasted,
            },
            "request_success_total": self._finished,
            "admission_rejections_total": self._rejected,
            "slo_requests_total": {} if self._targets == NO_TARGETS else self._judged,
        }

    def _numbers(self, declared: Declared, values: Values) -> Metric:
        return self._family(declared.kind, declared.family, declared.help, declared.labels, values)

    def _described(self, declared: Declared) -> Metric:
        described = self._description
        match declared.name.removeprefix(catalogue.PREFIX):
            case "startup_seconds":
                return self._numbers(declared, described.startup_s)
            case "slo_target_seconds":
                return self._numbers(declared, self._target_values())
            case "info":
                return self._info(declared.name, declared.help, described.info)
            case _:
                return self._info(declared.name, declared.help, described.cache_info)

    def _roofline(self, stats: CoreStats) -> Mapping[str, float]:
        roofline = self._description.roofline
        return {} if roofline is None else roofline.shares(stats)

    def _target_values(self) -> Mapping[str, float]:
        values = {
            "time_to_first_token": self._targets.first_token_s,
            "time_per_token": self._targets.seconds_per_token,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _vllm(self) -> Iterator[Metric]:
        source = Source(stats=self._stats, finished=self._finished, rejected=self._rejected)
        for alias in ALIASES:
            yield self._alias(alias, alias.read(source))
        for follower in HISTOGRAM_ALIASES:
            family = HistogramMetricFamily(follower.name, follower.help, labels=COMMON_LABELS)
            histogram = self._aliased[follower.name]
            family.add_metric(self._labels, histogram.buckets(), histogram.total)
            yield family
        info = self._description.cache_info
        yield self._info("vllm:cache_config_info", "Shape of the KV cache.", info)

    def _alias(self, alias: Alias, values: Values) -> Metric:
        if isinstance(values, Mapping):
            values = {value: values.get(value, 0.0) for value in alias.values}
        labels = (alias.label,) if alias.label else ()
        return self._family(alias.kind, alias.name, alias.help, labels, values)

    def _family(
        self, kind: str, name: str, help_: str, labels: tuple[str, ...], values: Values
    ) -> Metric:
        type_ = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        family = type_(name, help_, labels=(*COMMON_LABELS, *labels))
        if isinstance(values, Mapping):
            for value, number in values.items():
                family.add_metric((*self._labels, value), number)
        else:
            family.add_metric(self._labels, values)
        return family

    def _histogram(self, declared: Declared) -> Metric:
        labels = (*COMMON_LABELS, *declared.labels)
        family = HistogramMetricFamily(declared.name, declared.help, labels=labels)
        for value, histogram in self._native[declared.name].items():
            own = (value,) if declared.labels else ()
            family.add_metric((*self._labels, *own), histogram.buckets(), histogram.total)
        return family

    def _info(self, name: str, help_: str, info: Mapping[str, str]) -> Metric:
        family = GaugeMetricFamily(name, help_, labels=(*COMMON_LABELS, *info))
        family.add_metric((*self._labels, *info.values()), 1)
        return family


WASTE_OF = {"abort": "aborted", "error": "failed"}
"""Label of the tokens generated for a request, by how it ended in vain."""


def waiting_by_reason(stats: CoreStats) -> dict[str, int]:
    """Return how many sequences wait, by what for; nobody overtakes the head of the queue."""
    waiting = dict.fromkeys(catalogue.WAIT_REASONS, 0)
    waiting["shared_prefix"] = stats.num_held
    if stats.waits_for:
        waiting[stats.waits_for] += stats.num_waiting - stats.num_held
    return waiting


def bounds_of(declared: Declared, max_model_len: int) -> tuple[float, ...]:
    """Return the buckets for a model: counts of tokens end where its context does."""
    if declared.buckets is not catalogue.TOKENS:
        return declared.buckets
    return catalogue.one_two_five(max_model_len)


def _exceeds(value: float | None, target: float | None) -> bool:
    return value is not None and target is not None and value > target


def _never_stalled() -> float:
    return 0.0
