"""Metrics of the HTTP side, updated as requests are answered."""

import asyncio
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from quire_router import metric_catalogue as catalogue

LAG_INTERVAL_S = 0.5


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

    def judge(self, first_token_s: float, seconds_per_token: float) -> str:
        """Return one of SLO_RESULTS."""
        if self.first_token_s is not None and first_token_s > self.first_token_s:
            return "slow_first_token"
        if self.seconds_per_token is not None and seconds_per_token > self.seconds_per_token:
            return "slow_tokens"
        return "met"


NO_TARGETS = SloTargets()


class HttpMetrics:
    """The metrics of `metric_catalogue.HTTP` in a registry."""

    def __init__(
        self, registry: CollectorRegistry, *, targets: SloTargets = NO_TARGETS, version: str = ""
    ) -> None:
        self.requests = catalogue.REQUESTS.counter(registry)
        self.in_flight = catalogue.IN_FLIGHT.gauge(registry)
        self.disconnects = catalogue.DISCONNECTS.counter(registry)
        self.request_s = catalogue.REQUEST_S.histogram(registry)
        self.first_token_s = catalogue.TIME_TO_FIRST_TOKEN.histogram(registry)
        self.inter_token_s = catalogue.INTER_TOKEN.histogram(registry)
        self.prompt_tokens = catalogue.PROMPT_TOKENS.counter(registry)
        self.cached_tokens = catalogue.CACHED_PROMPT_TOKENS.counter(registry)
        self.completion_tokens = catalogue.COMPLETION_TOKENS.counter(registry)
        self.tokenize_s = catalogue.TOKENIZE.histogram(registry)
        cache = catalogue.TOKENIZER_CACHE.counter(registry)
        self._hits, self._misses = cache.labels("hit"), cache.labels("miss")
        self.loop_lag_s = catalogue.LOOP_LAG.histogram(registry)
        self._targets = targets
        self._judged = catalogue.SLO_REQUESTS.counter(registry)
        self._show_targets(registry)
        catalogue.INFO.gauge(registry).labels(version).set(1)

    def tokenizer_cache(self, *, hit: bool) -> None:
        (self._hits if hit else self._misses).inc()

    def judge(self, *, first_token_s: float, generation_s: float, num_tokens: int) -> None:
        """Count a request that ended well by the targets; it has `num_tokens` in its longest."""
        if self._targets == NO_TARGETS:
            return
        per_token_s = generation_s / (num_tokens - 1) if num_tokens > 1 else 0.0
        self._judged.labels(self._targets.judge(first_token_s, per_token_s)).inc()

    async def watch_loop_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag_s.observe(max(0.0, loop.time() - due))

    def _show_targets(self, registry: CollectorRegistry) -> None:
        shown = catalogue.SLO_TARGET.gauge(registry)
        if self._targets == NO_TARGETS:
            return
        for result in catalogue.SLO_RESULTS:
            self._judged.labels(result)
        if self._targets.first_token_s is not None:
            shown.labels("time_to_first_token").set(self._targets.first_token_s)
        if self._targets.seconds_per_token is not None:
            shown.labels("time_per_token").set(self._targets.seconds_per_token)
