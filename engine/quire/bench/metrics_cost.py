"""`quire bench metrics`: what metrics cost, in one run.

    scrape    GET /metrics of a router with many replicas, none of them there, over HTTP; and the
              processor's time of writing the answer, during which no token is passed on
    step      mean time of an engine's step with every metric on (both kinds of names, targets, a
              scrape each second), next to the same without, in turns
    share     time spent counting, next to the time of the steps it counted

Times by the wall clock move with whatever else the machine does; the other two hardly do.
"""

import asyncio
import contextlib
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import aiohttp
from prometheus_client import CollectorRegistry

from quire.bench.options import check_at_least
from quire_engine.config import EngineConfig, option
from quire_engine.core.messages import CoreStats
from quire_engine.frontend.deltas import RequestDelta
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.assembly import assemble
from quire_engine.server.async_engine import AsyncEngine
from quire_engine.server.config import ServerConfig
from quire_engine.server.loading import load_engine
from quire_engine.server.metrics import Distribution, EngineMetrics, FinishedRequest
from quire_engine.server.metrics_server import MetricsServer

SCRAPE_INTERVAL_S = 1.0
WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCostConfig:
    """What is measured, and how often."""

    num_replicas: int = option(100, "replicas of the router that is scraped")
    num_scrapes: int = option(50, "scrapes; the figure is their median")
    num_rounds: int = option(20, "rounds of steps, half of them without metrics")
    batch: int = option(16, "requests of a round")
    output_len: int = option(64, "tokens generated for each")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        for name in ("num_replicas", "num_scrapes", "batch"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("num_rounds", "output_len"):
            check_at_least(name, getattr(self, name), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCost:
    """The result; times in seconds, medians."""

    num_replicas: int
    scrape_s: float
    render_s: float
    """Of the processor, to write an answer to a scrape."""
    scrape_bytes: int
    step_on_s: float
    step_off_s: float
    counting_share: float
    """Of the time of the steps."""

    @property
    def step_ratio(self) -> float:
        return self.step_on_s / self.step_off_s

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "step_ratio": self.step_ratio}

    def __str__(self) -> str:
        return (
            f"/metrics with {self.num_replicas} replicas: {self.scrape_s * 1e3:.1f} ms, "
            f"of which {self.render_s * 1e3:.1f} ms to write {self.scrape_bytes / 1e3:.0f} kB\n"
            f"engine step: {self.step_on_s * 1e3:.3f} ms with metrics, "
            f"{self.step_off_s * 1e3:.3f} ms without, ratio {self.step_ratio:.4f}\n"
            f"counting: {self.counting_share:.3%} of the steps' time\n"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrapes:
    """What scrapes took, medians, and the bytes of one."""

    scrape_s: float
    render_s: float
    num_bytes: int


class SwitchedMetrics(EngineMetrics):
    """Metrics that can be turned off, and that time themselves."""

    is_on = True
    counting_s = 0.0
    seen = CoreStats()

    def switch(self, *, on: bool) -> None:
        if not hasattr(self, "_kept"):
            self._kept = self.first_token, self.inter_token
        self.is_on = on
        self.first_token, self.inter_token = self._kept if on else (Distribution(), Distribution())

    def on_step(self, stats: CoreStats) -> None:
        self.seen = stats
        if self.is_on:
            started_at = time.perf_counter()
            super().on_step(stats)
            self.counting_s += time.perf_counter() - started_at

    def on_finished(self, request: FinishedRequest) -> None:
        if self.is_on:
            started_at = time.perf_counter()
            super().on_finished(request)
            self.counting_s += time.perf_counter() - started_at


class Readers:
    """Waits until so many requests have ended."""

    def __init__(self, num_requests: int) -> None:
        self._num_left = num_requests
        self._done = asyncio.Event()

    def deliver(self, delta: RequestDelta) -> None:
        if delta.error is not None:
            raise delta.error
        if delta.finished:
            self._num_left -= 1
            if not self._num_left:
                self._done.set()

    def flush(self, load: pb.Load) -> None:
        """Nobody reads the load here."""

    async def wait(self) -> None:
        await self._done.wait()


async def measure_cost(engine: EngineConfig, config: MetricsCostConfig) -> MetricsCost:
    """Measure both sides, print the result and return it."""
    scrapes = await measure_scrapes(config.num_replicas, config.num_scrapes)
    on_s, off_s, share = await measure_steps(engine, config)
    cost = MetricsCost(
        num_replicas=config.num_replicas,
        scrape_s=scrapes.scrape_s,
        render_s=scrapes.render_s,
        scrape_bytes=scrapes.num_bytes,
        step_on_s=on_s,
        step_off_s=off_s,
        counting_share=share,
    )
    sys.stdout.write(str(cost))
    return cost


async def measure_scrapes(num_replicas: int, num_scrapes: int) -> Scrapes:
    """Scrape a router over HTTP."""
    from quire_router.exposition import exposition

    times: list[float] = []
    render_s: list[float] = []
    size = 0
    async with _router(num_replicas) as (url, registry), aiohttp.ClientSession() as http:
        for number in range(num_scrapes + WARM_UP):
            started_at = time.perf_counter()
            async with http.get(url) as response:
                size = len(await response.read())
                response.raise_for_status()
            if number >= WARM_UP:
                times.append(time.perf_counter() - started_at)
                began_at = time.thread_time()
                exposition(registry)
                render_s.append(time.thread_time() - began_at)
    return Scrapes(
        scrape_s=statistics.median(times), render_s=statistics.median(render_s), num_bytes=size
    )


async def measure_steps(
    config: EngineConfig, cost: MetricsCostConfig
) -> tuple[float, float, float]:
    """Return the mean times of a step with and without metrics, and the share of counting."""
    core, card = await load_engine(config, lambda _line: None, log_level="warning")
    server = ServerConfig(metrics_compat="vllm", slo_ttft_ms=1000, slo_itl_ms=100)
    serving = assemble(core, card, server, metrics_type=SwitchedMetrics)
    metrics = serving.metrics
    assert isinstance(metrics, SwitchedMetrics), "it was asked for"
    exporter = MetricsServer(host="127.0.0.1", port=0)
    exporter.add(metrics)
    pump = asyncio.create_task(serving.engine.run())
    try:
        await _round(serving.engine, metrics, cost)
        times: dict[bool, list[float]] = {True: [], False: []}
        metrics.counting_s = busy_on_s = 0.0
        for number in range(cost.num_rounds):
            # On, off, off, on: a drift of the machine weighs on both alike.
            is_on = number % 4 in (0, 3)
            metrics.switch(on=is_on)
            async with _scraped(exporter.port if is_on else None):
                step_s, busy_s = await _round(serving.engine, metrics, cost)
            times[is_on].append(step_s)
            busy_on_s += busy_s if is_on else 0.0
    finally:
        await core.close()
        await asyncio.gather(pump, return_exceptions=True)
        await asyncio.to_thread(exporter.close)
    on_s, off_s = (statistics.median(times[is_on]) for is_on in (True, False))
    return on_s, off_s, metrics.counting_s / busy_on_s


async def _round(
    engine: AsyncEngine, metrics: SwitchedMetrics, cost: MetricsCostConfig
) -> tuple[float, float]:
    """Return the mean time of a step of one round, and the time of all its steps."""
    before, readers = metrics.seen, Readers(cost.batch)
    params = SamplingParams(temperature=0.0, max_tokens=cost.output_len, ignore_eos=True)
    for number in range(cost.batch):
        prompt = [token % 1000 + 1 for token in range(number, number + 32)]
        engine.submit(f"{id(readers)}-{number}", prompt, params, readers)
    await readers.wait()
    busy_s = metrics.seen.busy_s - before.busy_s
    return busy_s / (metrics.seen.num_steps - before.num_steps), busy_s


@contextlib.asynccontextmanager
async def _scraped(port: int | None) -> AsyncIterator[None]:
    """Scrape a port as Prometheus would, only more often; nothing without a port."""
    if port is None:
        yield
        return
    scraper = asyncio.create_task(_scrape(f"http://127.0.0.1:{port}/metrics"))
    try:
        yield
    finally:
        scraper.cancel()
        await asyncio.gather(scraper, return_exceptions=True)


async def _scrape(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as response:
                await response.read()
            await asyncio.sleep(SCRAPE_INTERVAL_S)


@contextlib.asynccontextmanager
async def _router(num_replicas: int) -> AsyncIterator[tuple[str, CollectorRegistry]]:
    """Run a router that looks for replicas in vain; yield the address of its metrics, and them."""
    from quire_router.app import RouterApp
    from quire_router.config import RouterConfig
    from quire_router.dispatcher import PoolDispatcher
    from quire_router.server import QuietServer, uvicorn_config

    replicas = tuple(f"unix:/nonexistent/engine-{number}.sock" for number in range(num_replicas))
    config, registry = RouterConfig(replicas=replicas), CollectorRegistry()
    app = RouterApp(config, PoolDispatcher(config, registry), registry)
    server = QuietServer(uvicorn_config(app))
    listener = socket.create_server(("127.0.0.1", 0))
    async with app.running():
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics", registry
        server.should_exit = server.force_exit = True
        await serving
