"""`quire bench metrics`: what metrics cost, in one run.

    scrape    GET /metrics of a router with many replicas, none of them there, over HTTP; and the
              processor's time of writing the answer, during which no token is passed on
    step      time of an engine's step with every metric on (both kinds of names, targets, a scrape
              each second), next to the same without, in turns
    share     time spent counting, next to the time of the steps it counted

Times by the wall clock move with whatever else the machine does; shares, ratios and a processor's
time hardly do. The most that a scrape took is told in both: what is between them was waited for.
"""

import asyncio
import contextlib
import gc
import os
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp
from prometheus_client import CollectorRegistry

from quire.bench.options import check_at_least
from quire.bench.step_cost import StepCost, measure_steps
from quire_engine.config import EngineConfig, option

WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCostConfig:
    """What is measured, and how often."""

    num_replicas: int = option(100, "replicas of the router that is scraped")
    num_scrapes: int = option(100, "scrapes; the figure is their median")
    num_pairs: int = option(1000, "pairs of stretches of steps, with metrics and without")
    batch: int = option(16, "requests that run at any time")
    output_len: int = option(32, "tokens generated for each")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        for name in ("num_replicas", "num_scrapes", "batch", "num_pairs"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("output_len", self.output_len, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrapes:
    """Seconds that scrapes took, and the bytes of one."""

    scrape_s: list[float]
    """By the wall clock, over HTTP."""
    scrape_cpu_s: list[float]
    """Of the processor, for the same: the router's, and what the client adds."""
    render_s: list[float]
    """Of the processor, to write an answer."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCost:
    """The result."""

    num_replicas: int
    scrapes: Scrapes
    steps: StepCost
    load: float
    """Of the machine, mean number of processes that ran or wanted to, over the last minute."""

    def to_json(self) -> dict[str, float]:
        """Return the figures, times in seconds."""
        scrapes, steps = self.scrapes, self.steps
        low, high = steps.ratio_range
        return {
            "num_replicas": self.num_replicas,
            "scrape_s": statistics.median(scrapes.scrape_s),
            "max_scrape_s": max(scrapes.scrape_s),
            "max_scrape_cpu_s": max(scrapes.scrape_cpu_s),
            "render_s": statistics.median(scrapes.render_s),
            "scrape_bytes": scrapes.num_bytes,
            "num_pairs": len(steps.on_s),
            "step_on_s": statistics.median(steps.on_s),
            "step_off_s": statistics.median(steps.off_s),
            "step_ratio": steps.ratio,
            "step_ratio_low": low,
            "step_ratio_high": high,
            "counting_share": steps.counting_share,
            "load": self.load,
        }

    def __str__(self) -> str:
        of = self.to_json()
        return (
            f"/metrics with {self.num_replicas} replicas: {of['scrape_s'] * 1e3:.1f} ms, "
            f"{of['render_s'] * 1e3:.1f} ms of it to write {of['scrape_bytes'] / 1e3:.0f} kB; "
            f"at most {of['max_scrape_s'] * 1e3:.1f} ms, "
            f"and {of['max_scrape_cpu_s'] * 1e3:.1f} ms of a processor\n"
            f"engine step: {of['step_on_s'] * 1e3:.3f} ms with metrics, "
            f"{of['step_off_s'] * 1e3:.3f} ms without; ratio {of['step_ratio']:.4f}, "
            f"95% certain within {of['step_ratio_low']:.4f} to {of['step_ratio_high']:.4f} "
            f"({of['num_pairs']} pairs)\n"
            f"counting: {of['counting_share']:.3%} of the steps' time\n"
            f"load of the machine: {self.load:.1f}\n"
        )


async def measure_cost(engine: EngineConfig, config: MetricsCostConfig) -> MetricsCost:
    """Measure both sides, print the result and return it."""
    scrapes = await measure_scrapes(config.num_replicas, config.num_scrapes)
    steps = await measure_steps(
        engine, num_pairs=config.num_pairs, batch=config.batch, output_len=config.output_len
    )
    cost = MetricsCost(
        num_replicas=config.num_replicas, scrapes=scrapes, steps=steps, load=os.getloadavg()[0]
    )
    sys.stdout.write(str(cost))
    return cost


async def measure_scrapes(num_replicas: int, num_scrapes: int) -> Scrapes:
    """Scrape a router over HTTP."""
    from quire_router.exposition import exposition

    scrape_s: list[float] = []
    scrape_cpu_s: list[float] = []
    render_s: list[float] = []
    size = 0
    async with _router(num_replicas) as (url, registry), aiohttp.ClientSession() as http:
        for number in range(num_scrapes + WARM_UP):
            started_at, began_at = time.perf_counter(), time.thread_time()
            async with http.get(url) as response:
                size = len(await response.read())
                response.raise_for_status()
            if number >= WARM_UP:
                scrape_s.append(time.perf_counter() - started_at)
                scrape_cpu_s.append(time.thread_time() - began_at)
                began_at = time.thread_time()
                exposition(registry)
                render_s.append(time.thread_time() - began_at)
    return Scrapes(scrape_s=scrape_s, scrape_cpu_s=scrape_cpu_s, render_s=render_s, num_bytes=size)


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
        with _settled_heap():
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics", registry
            server.should_exit = server.force_exit = True
            await serving


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """Leave alone what is there already, as a router's own process does once it has started.

    This one has the engine's modules too: to look through them takes the collector 50 ms.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
