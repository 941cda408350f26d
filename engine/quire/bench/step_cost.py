"""What metrics cost an engine's steps, with every metric on and with none in turns.

Requests come and go at a steady pace, and after every few steps metrics are switched. Whatever else
the machine does weighs on neighbours alike, and the median over a thousand pairs does not follow
those in which it did not.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

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
STRETCH = 6
"""Steps between two switches."""
WARM_UP_STRETCHES = 20
PROMPT_LEN = 32
NUM_PROMPTS = 64
DEVIATIONS_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Median seconds of a step in stretches with metrics, and in their neighbours without."""

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


class SwitchingMetrics(EngineMetrics):
    """Metrics that turn themselves off and on again, and time themselves and the steps."""

    is_on = True
    counting_s = 0.0
    busy_on_s = 0.0
    on_stretch: Callable[[], None] = staticmethod(lambda: None)
    """Called after each stretch of steps."""

    def begin(self) -> None:
        """Forget what was measured so far."""
        if not hasattr(self, "_kept"):
            self._kept = self.first_token, self.inter_token
        self._switch(on=True)
        self.stretches: dict[bool, list[float]] = {True: [], False: []}
        self.counting_s = self.busy_on_s = 0.0
        self._steps_s: list[float] = []
        self._last: CoreStats | None = None

    def on_step(self, stats: CoreStats) -> None:
        if self.is_on:
            started_at = time.perf_counter()
            super().on_step(stats)
            self.counting_s += time.perf_counter() - started_at
        if hasattr(self, "_kept"):
            self._measure(stats)

    def on_finished(self, request: FinishedRequest) -> None:
        if self.is_on:
            started_at = time.perf_counter()
            super().on_finished(request)
            self.counting_s += time.perf_counter() - started_at

    def _measure(self, stats: CoreStats) -> None:
        last, self._last = self._last, stats
        if last is None or stats.num_steps == last.num_steps:
            return
        step_s = (stats.busy_s - last.busy_s) / (stats.num_steps - last.num_steps)
        self._steps_s.append(step_s)
        self.busy_on_s += step_s if self.is_on else 0.0
        if len(self._steps_s) < STRETCH:
            return
        # A step's metrics are counted during the next one: the first is still the other's.
        self.stretches[self.is_on].append(statistics.median(self._steps_s[1:]))
        self._steps_s.clear()
        num_stretches = sum(map(len, self.stretches.values()))
        # On, off, off, on: a drift of the machine weighs on both alike.
        self._switch(on=num_stretches % 4 in (0, 3))
        self.on_stretch()

    def _switch(self, *, on: bool) -> None:
        self.is_on = on
        self.first_token, self.inter_token = self._kept if on else (Distribution(), Distribution())


class SteadyLoad:
    """So many requests at any time: one that ends is followed by the next."""

    def __init__(self, engine: AsyncEngine, *, batch: int, output_len: int) -> None:
        self._engine = engine
        self._output_len = output_len
        self._num_left = batch
        self._num_sent = 0
        self._is_ending = False
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        for number in range(batch):
            # Not all in step: they end one after the other.
            self._send(1 + number * output_len // batch)

    def deliver(self, delta: RequestDelta) -> None:
        self._error = self._error or delta.error
        if not (delta.finished or delta.error):
            return
        if self._is_ending or self._error is not None:
            self._num_left -= 1
            if not self._num_left:
                self._ended.set()
        else:
            self._send(self._output_len)

    def flush(self, load: pb.Load) -> None:
        """Nobody reads the load here."""

    async def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for some work; raise what a request failed with meanwhile."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(work)
            ended = group.create_task(self._ended.wait())
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            ended.cancel()
        self._check()

    async def end(self) -> None:
        """Let the last ones finish."""
        self._is_ending = True
        await self._ended.wait()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, num_tokens: int) -> None:
        self._num_sent += 1
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        start = self._num_sent % NUM_PROMPTS
        prompt = [token % 1000 + 1 for token in range(start, start + PROMPT_LEN)]
        self._engine.submit(f"{id(self)}-{self._num_sent}", prompt, params, self)


async def measure_steps(
    config: EngineConfig, *, num_pairs: int, batch: int, output_len: int
) -> StepCost:
    """Compare so many pairs of stretches of steps, `batch` requests running."""
    core, card = await load_engine(config, lambda _line: None, log_level="warning")
    server = ServerConfig(metrics_compat="vllm", slo_ttft_ms=1000, slo_itl_ms=100)
    serving = assemble(core, card, server, metrics_type=SwitchingMetrics)
    metrics = serving.metrics
    assert isinstance(metrics, SwitchingMetrics), "it was asked for"
    exporter = MetricsServer(host="127.0.0.1", port=0)
    exporter.add(metrics)
    pump = asyncio.create_task(serving.engine.run())
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    scraper = asyncio.create_task(_scrape(url, lambda: metrics.is_on))
    try:
        load = SteadyLoad(serving.engine, batch=batch, output_len=output_len)
        await load.during(_stretches(metrics, WARM_UP_STRETCHES))
        with progress("pairs", num_pairs) as advance:
            await load.during(_stretches(metrics, 2 * num_pairs, advance))
        on_s, off_s = (metrics.stretches[is_on][:num_pairs] for is_on in (True, False))
        share = metrics.counting_s / metrics.busy_on_s
        await load.end()
    finally:
        scraper.cancel()
        await core.close()
        await asyncio.gather(pump, scraper, return_exceptions=True)
        await asyncio.to_thread(exporter.close)
    return StepCost(on_s=on_s, off_s=off_s, counting_share=share)


async def _stretches(
    metrics: SwitchingMetrics, num: int, advance: Callable[[], None] = lambda: None
) -> None:
    """Begin to measure, and wait for so many stretches; tell of every second one."""
    done, num_seen = asyncio.Event(), 0

    def note() -> None:
        nonlocal num_seen
        num_seen += 1
        if num_seen <= num and num_seen % 2 == 0:
            advance()
        if num_seen == num:
            done.set()

    metrics.begin()
    metrics.on_stretch = note
    await done.wait()


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
