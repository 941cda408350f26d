"""Metrics of the HTTP side. The pool side declares its own on the same registry."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
TOKEN_BUCKETS = (1, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
LAG_INTERVAL_S = 0.5


class HttpMetrics:
    """Every metric of the HTTP side, declared once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, text, labels, buckets=LATENCY_BUCKETS_S, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = counter(
            "quire_router_requests_total", "Requests answered.", ("route", "status")
        )
        self.in_flight = Gauge(
            "quire_router_requests_in_flight",
            "Requests to generate that are being answered.",
            registry=registry,
        )
        self.disconnects = counter(
            "quire_router_client_disconnects_total",
            "Requests whose client went away before the end.",
            ("route",),
        )
        self.request_s = histogram(
            "quire_router_request_duration_seconds",
            "From the request to its last byte.",
            ("route",),
        )
        self.first_token_s = histogram(
            "quire_router_time_to_first_token_seconds",
            "From a request to its first generated token, as the router sees it; streams only.",
        )
        self.inter_token_s = histogram(
            "quire_router_inter_token_latency_seconds",
            "Between two pieces of one stream's generation.",
        )
        self.prompt_tokens = counter("quire_router_prompt_tokens_total", "Tokens of prompts.")
        self.cached_tokens = counter(
            "quire_router_cached_prompt_tokens_total", "Tokens of prompts found in a cache."
        )
        self.completion_tokens = counter(
            "quire_router_completion_tokens_total", "Tokens generated."
        )
        self.tokenize_s = histogram(
            "quire_router_tokenize_seconds", "Tokenizing a text that was not in the cache."
        )
        self._tokenizer_cache = counter(
            "quire_router_tokenizer_cache_total", "Texts looked up.", ("result",)
        )
        self._hits = self._tokenizer_cache.labels("hit")
        self._misses = self._tokenizer_cache.labels("miss")
        self.loop_lag_s = histogram(
            "quire_router_event_loop_lag_seconds",
            "How late the event loop runs what is due.",
        )

    def tokenizer_cache(self, *, hit: bool) -> None:
        (self._hits if hit else self._misses).inc()

    async def watch_loop_lag(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag_s.observe(max(0.0, loop.time() - due))
