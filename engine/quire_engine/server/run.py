"""The life of an engine's frontend process: bind, load, serve, and end in the way it was told to.

exit status 0     drained after SIGTERM or SIGINT
1     the core process died, or could not start
2     a configuration that cannot work (`main` prints it)
130   told to stop twice
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from quire_engine.errors import ConfigError
from quire_engine.rpc.collector import NO_ENVIRONMENT, TracingError
from quire_engine.rpc.tracing import Tracing, start_tracing
from quire_engine.server.assembly import assemble
from quire_engine.server.async_engine import Core
from quire_engine.server.config import METRICS_OFF, ServerConfig
from quire_engine.server.engine_server import EngineServer
from quire_engine.server.metrics_server import MetricsServer
from quire_engine.server.model_card import ModelCard
from quire_engine.server.service import Serving

logger = logging.getLogger(__name__)

EXIT_DRAINED, EXIT_DEAD, EXIT_KILLED = 0, 1, 130
CORE_EXIT_S = 5.0
"""How long the core gets to end by itself."""
LAST_WORDS_S = 1.0
"""How long clients get to hear that the core died, or that they were aborted."""

ResultT = TypeVar("ResultT")
Say = Callable[[str], None]
Load = Callable[[], Coroutine[Any, Any, tuple[Core, ModelCard]]]
"""Loads a model and starts its core."""


class StopRequests:
    """SIGTERM and SIGINT, counted: the first asks for a drain, the second for an end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.note)

    def note(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def run_engine(
    load: Load, config: ServerConfig, say: Say, *, environment: Mapping[str, str] = NO_ENVIRONMENT
) -> int:
    """Serve what `load` brings until told to stop; return the exit status.

    `environment` may say how to send traces.

    Raises:
        ConfigError: an address is in use, or the model cannot be served as configured.
        EngineDeadError: the core could not start.
    """
    stops = StopRequests()
    stops.listen()
    process = EngineProcess(config, stops, say, _start_tracing(config, environment))
    try:
        return await process.run(load)
    finally:
        await process.close()


class EngineProcess:
    """What has been started so far, so that it can be ended from any point."""

    def __init__(
        self, config: ServerConfig, stops: StopRequests, say: Say, tracing: Tracing | None
    ) -> None:
        self._config = config
        self._tracing = tracing
        self._stops = stops
        self._say = say
        self._server = EngineServer(config)
        self._metrics: MetricsServer | None = None
        self._core: Core | None = None
        self._pump: asyncio.Task[None] | None = None

    async def run(self, load: Load) -> int:
        started_at = time.monotonic()
        # Bound before loading, so that a port in use is known at once and not minutes later.
        await self._server.start()
        if self._config.metrics_port != METRICS_OFF:
            self._metrics = MetricsServer(host=self._config.host, port=self._config.metrics_port)
        loaded = await _unless(self._stops.first, load())
        if loaded is None:
            return EXIT_DRAINED
        self._core, card = loaded
        serving = assemble(self._core, card, self._config, tracing=self._tracing)
        if self._metrics is not None:
            self._metrics.add(serving.metrics)
        self._pump = asyncio.create_task(serving.engine.run())
        await self._server.serve(serving)
        self._announce(card, time.monotonic() - started_at)
        return await self._serve(serving, self._pump)

    async def close(self) -> None:
        """End everything, at once. Whoever is in flight has been told already, or never will."""
        await self._server.stop(grace_s=0.0)
        if self._core is not None:
            is_urgent = self._stops.second.is_set()
            await self._core.close(timeout_s=0.0 if is_urgent else CORE_EXIT_S)
        if self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _serve(self, serving: Serving, pump: asyncio.Task[None]) -> int:
        await _unless(self._stops.first, asyncio.wait([pump]))
        if pump.done():
            return await self._mourn(pump)
        self._say(
            f"stopping: {serving.engine.num_in_flight} requests in flight get "
            f"{self._config.shutdown_timeout:g} s; once more to stop at once"
        )
        draining = serving.engine.drain(self._config.shutdown_timeout)
        num_aborted = await _unless(self._stops.second, draining)
        if num_aborted is None:
            return EXIT_KILLED
        if pump.done():
            return await self._mourn(pump)
        self._say(f"stopped: {num_aborted} requests aborted")
        await self._server.stop(grace_s=LAST_WORDS_S)
        return EXIT_DRAINED

    async def _mourn(self, pump: asyncio.Task[None]) -> int:
        """Report the death of the core; the pump has told every client."""
        logger.error("core died reason=%s", pump.exception())
        await self._server.stop(grace_s=LAST_WORDS_S)
        return EXIT_DEAD

    def _announce(self, card: ModelCard, took_s: float) -> None:
        metrics = "" if self._metrics is None else f", metrics on port {self._metrics.port}"
        names = ", ".join(card.served_names)
        self._say(f"ready: {names} on {self._server.address} after {took_s:.1f} s{metrics}")


def _start_tracing(config: ServerConfig, environment: Mapping[str, str]) -> Tracing | None:
    if config.otlp_traces_endpoint is None:
        return None
    try:
        return start_tracing(
            config.otlp_traces_endpoint,
            config.otlp_traces_protocol,
            service="quire-engine",
            environment=environment,
        )
    except TracingError as error:
        raise ConfigError(str(error)) from None


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """Return the result of `work`, or None when `stop` comes first; it is then cancelled."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
