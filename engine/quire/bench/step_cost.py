"""What metrics cost an engine's steps: rounds with every metric on and with none, in turns.

Whatever else the machine does weighs on both rounds of a pair alike, and the median over many pairs
does not follow those in which it did not.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import aiohttp

from quire.bench.progress import progress
from quire_engine.config import EngineConfig
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
SCRAPE_TICK_S = 0.05
WARM_UP_ROUNDS = 3
PROMPT_LEN = 32
DEVIATIONS_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Mean seconds of a step in each round with metrics, and in its pair without."""

    on_s: Sequence[float]
    off_s: Sequence[float]
    counting_share: float
    """Of the time of the steps with metrics, spent counting."""

    @property
    def ratios(self) -> list[float]:
        """With metrics to without, of each pair; ascending."""
        return sorted(on / off for on, off in zip(self.on_s, self.off_s, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Where the true median lies with 95% certainty, whatever the distribution."""
        ratios = self.ratios
        reach = DEVIATIONS_95 * sqrt(len(ratios)) / 2
        low = max(0, round(len(ratios) / 2 - reach) - 1)
        return ratios[low], ratios[len(ratios) - 1 - low]


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


async def measure_steps(
    config: EngineConfig, *, num_pairs: int, batch: int, output_len: int
) -> StepCost:
    """Run so many pairs of rounds of `batch` requests on a model."""
    core, card = await load_engine(config, lambda _line: None, log_level="warning")
    server = ServerConfig(metrics_compat="vllm", slo_ttft_ms=1000, slo_itl_ms=100)
    serving = assemble(core, card, server, metrics_type=SwitchedMetrics)
    metrics = serving.metrics
    assert isinstance(metrics, SwitchedMetrics), "it was asked for"
    exporter = MetricsServer(host="127.0.0.1", port=0)
    exporter.add(metrics)

    async def run_round(*, is_on: bool) -> tuple[float, float]:
        metrics.switch(on=is_on)
        return await _round(serving.engine, metrics, batch, output_len)

    pump = asyncio.create_task(serving.engine.run())
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    scraper = asyncio.create_task(_scrape(url, lambda: metrics.is_on))
    try:
        for _ in range(WARM_UP_ROUNDS):
            await run_round(is_on=True)
        metrics.counting_s = 0.0
        on_s, off_s, busy_on_s = await _pairs(run_round, num_pairs)
    finally:
        scraper.cancel()
        await core.close()
        await asyncio.gather(pump, scraper, return_exceptions=True)
        await asyncio.to_thread(exporter.close)
    return StepCost(on_s=on_s, off_s=off_s, counting_share=metrics.counting_s / busy_on_s)


async def _pairs(
    run_round: Callable[..., Awaitable[tuple[float, float]]], num_pairs: int
) -> tuple[list[float], list[float], float]:
    """Return the mean times of a step of all rounds, and the time of the steps with metrics."""
    times: dict[bool, list[float]] = {True: [], False: []}
    busy_on_s = 0.0
    with progress("pairs", num_pairs) as advance:
        for number in range(num_pairs):
            # Each goes first in every other pair: what the first leaves behind weighs on both.
            for is_on in (number % 2 == 0, number % 2 == 1):
                step_s, busy_s = await run_round(is_on=is_on)
                times[is_on].append(step_s)
                busy_on_s += busy_s if is_on else 0.0
            advance()
    return times[True], times[False], busy_on_s


async def _round(
    engine: AsyncEngine, metrics: SwitchedMetrics, batch: int, output_len: int
) -> tuple[float, float]:
    """Return the mean time of a step of one round, and the time of all its steps."""
    before, readers = metrics.seen, Readers(batch)
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    for number in range(batch):
        prompt = [token % 1000 + 1 for token in range(number, number + PROMPT_LEN)]
        engine.submit(f"{id(readers)}-{number}", prompt, params, readers)
    await readers.wait()
    busy_s = metrics.seen.busy_s - before.busy_s
    return busy_s / (metrics.seen.num_steps - before.num_steps), busy_s


async def _scrape(url: str, is_on: Callable[[], bool]) -> None:
    """Scrape as Prometheus would, only more often: after each second with metrics."""
    since_s = 0.0
    async with aiohttp.ClientSession() as http:
        while True:
            await asyncio.sleep(SCRAPE_TICK_S)
            since_s += SCRAPE_TICK_S if is_on() else 0.0
            if since_s >= SCRAPE_INTERVAL_S and is_on():
                since_s = 0.0
                async with http.get(url) as response:
                    await response.read()
