"""A fake engine inside the running event loop, with faults to order."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass, replace
from typing import Self

from quire_engine.config import EngineConfig
from quire_engine.core.messages import StepOutputs
from quire_engine.errors import EngineDeadError, RequestError
from quire_engine.rpc.tracing import Tracing
from quire_engine.server.assembly import assemble
from quire_engine.server.config import METRICS_OFF, ServerConfig
from quire_engine.server.engine_server import EngineServer
from quire_engine.server.service import Serving
from quire_engine.testing.model import fake_card
from quire_engine.testing.runner import FakeModel, FakeRunner, build_fake_runner
from quire_engine.testing.thread_core import ThreadCore, start_thread_core

LOCAL = ServerConfig(host="127.0.0.1", port=0, metrics_port=METRICS_OFF)


@dataclass(slots=True, kw_only=True)
class _Life:
    """What exists from a start to the next death or stop."""

    runner: FakeRunner
    core: ThreadCore
    serving: Serving
    server: EngineServer
    pump: asyncio.Task[None]


class FakeEngine:
    """One fake engine; enter it as an async context.

    `address` is a gRPC target and stays over restarts. Faults may be combined and repeated.
    """

    def __init__(
        self,
        model: FakeModel | None = None,
        *,
        config: EngineConfig | None = None,
        server: ServerConfig = LOCAL,
        served_model_name: tuple[str, ...] = ("fake",),
        tracing: Tracing | None = None,
    ) -> None:
        """Describe it; nothing starts yet.

        `config` sizes the cache (num_gpu_blocks_override), the scheduler and max_model_len. Where
        not told otherwise it listens on a free port of 127.0.0.1 and has no metrics port. `tracing`
        stays its owner's to close.
        """
        self.model = model or FakeModel()
        self.config = config or EngineConfig()
        self.address = ""
        self._server_config = server
        self._tracing = tracing
        self._card = fake_card(self.config, served_model_name)
        self._current: _Life | None = None
        self._runs = threading.Event()
        self._runs.set()
        self._refusal: RequestError | None = None
        self._num_events_to_drop = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def epoch(self) -> int:
        """Changes with every start."""
        return self._life.serving.engine.mirror.epoch

    @property
    def num_in_flight(self) -> int:
        """Requests that have been accepted and not ended; 0 when everything was cleaned up."""
        return self._life.serving.engine.num_in_flight

    @property
    def num_used_blocks(self) -> int:
        """Blocks that live sequences hold."""
        return self._life.serving.engine.load().num_used_blocks

    async def start(self) -> None:
        """Start with an empty cache, on the address of the last start if there was one.

        Raises:
            ConfigError: the address is in use.
        """
        assert self._current is None, "already started"
        self._runs.set()
        server = EngineServer(self._server_config)
        await server.start()
        self.address = server.address
        if not self._server_config.uds:
            port = int(server.address.rsplit(":", 1)[1])
            self._server_config = replace(self._server_config, port=port)
        self._current = await self._begin(server)

    async def stop(self) -> None:
        """End at once; requests in flight are cancelled. Does nothing when not started."""
        life, self._current = self._current, None
        if life is None:
            return
        self._runs.set()
        await life.server.stop(grace_s=0.0)
        await life.core.close()
        with contextlib.suppress(EngineDeadError):
            await life.pump

    async def die(self) -> None:
        """Lose the core as if it had been killed, tell everyone in flight, and go away."""
        life = self._life
        life.core.die("was killed by SIGKILL")
        with contextlib.suppress(EngineDeadError):
            await life.pump
        await life.server.health.update()
        await life.server.stop(grace_s=0.2)
        await self.stop()

    async def restart(self) -> None:
        """Stop if need be and start again: a new epoch, an empty cache."""
        await self.stop()
        await self.start()

    def hang(self) -> None:
        """Let the next step last until `resume`."""
        self._runs.clear()

    def resume(self) -> None:
        """End a `hang`."""
        self._runs.set()

    def slow_down(self, factor: float) -> None:
        """Let every step take `factor` times as long as the model says; 1 is normal."""
        self._life.runner.slowdown = factor

    def refuse(self, error: RequestError | None) -> None:
        """Answer every new request with this error; None: take them again."""
        self._refusal = error

    def drop_kv_events(self, num_batches: int = 1) -> None:
        """Keep the next changes of the cache from subscribers, who see a gap in the numbers."""
        self._num_events_to_drop += num_batches

    async def drain(self, timeout_s: float | None = None) -> int:
        """Take no new requests and wait for those in flight, as SIGTERM would."""
        return await self._life.serving.engine.drain(timeout_s)

    async def reset_prefix_cache(self) -> None:
        await self._life.serving.engine.reset_prefix_cache()

    @property
    def _life(self) -> _Life:
        assert self._current is not None, "the fake engine is not running"
        return self._current

    async def _begin(self, server: EngineServer) -> _Life:
        runner = build_fake_runner(self.config, self.model)
        runner.before_step = self._wait_while_hung
        core = start_thread_core(
            self.config,
            runner,
            self._card,
            refusal=lambda: self._refusal,
            on_step=self._spoil,
        )
        serving = assemble(core, self._card, self._server_config, tracing=self._tracing)
        pump = asyncio.create_task(serving.engine.run())
        await server.serve(serving)
        return _Life(runner=runner, core=core, serving=serving, server=server, pump=pump)

    def _wait_while_hung(self) -> None:
        self._runs.wait()

    def _spoil(self, step: StepOutputs) -> None:
        if step.kv_events is not None and self._num_events_to_drop:
            self._num_events_to_drop -= 1
            step.kv_events = None
            self._life.serving.engine.mirror.seq += 1
