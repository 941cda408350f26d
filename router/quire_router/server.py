"""The router as a process: `run(config)` serves until SIGTERM or SIGINT.

The first signal turns readiness off. After `shutdown_delay` nothing new is accepted and requests in
flight get `shutdown_timeout` to end; what is left then, or at a second signal of the same kind,
ends with an error. Either way the status is 0.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    disable_created_metrics,
    values,
)

from quire_engine.rpc.logs import configure_logging
from quire_router.app import RouterApp
from quire_router.auth import load_keys
from quire_router.config import RouterConfig
from quire_router.dispatcher import PoolDispatcher
from quire_router.errors import ConfigError
from quire_router.gateway import access_logger
from quire_router.workers.accepting import Acceptor
from quire_router.workers.memory import WorkerMemory
from quire_router.workers.process_metrics import LoneProcessCollector
from quire_router.workers.share import WorkerShare
from quire_router.workers.supervisor import HURRY, STOPPING, Supervisor

logger = logging.getLogger(__name__)

BACKLOG = 2048
# Longer than the idle timeouts of common proxies and client pools, so that it is never this side
# that closes a connection just as the other one sends on it.
KEEP_ALIVE_S = 75
# How long the last error events get to leave the process.
FLUSH_S = 0.5
# How long a worker gets after all that before it is killed.
STOP_MARGIN_S = 5.0
OWN_COLLECTORS = (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR)


def run(config: RouterConfig) -> int:
    """Serve until told to stop; return the process's exit status.

    Raises:
        ConfigError: the router cannot start: a file, the address or the replicas are no good.
    """
    api_keys = load_keys(config, os.environ)
    if not config.replicas:
        raise ConfigError("no engine to route to: name at least one with --replicas")
    _configure_logging(config)
    with _listener(config.host, config.port) as listener:
        if config.workers > 1:
            return _supervise(config, api_keys, listener)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, api_keys, listener))
    return 0


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `Shutdown`."""
        yield


class WorkerServer(QuietServer):
    """uvicorn whose connections are accepted from a socket that other processes have too."""

    def __init__(self, config: uvicorn.Config, share: WorkerShare) -> None:
        super().__init__(config)
        self._share = share
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept from the one socket there is."""
        assert sockets is not None, "a worker inherits its socket"
        await super().startup(sockets=[])
        connections = self.server_state.connections
        acceptor = Acceptor(sockets[0], self._share, self._protocol, lambda: len(connections))
        self._accepting = asyncio.create_task(acceptor.run())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, then do as uvicorn does."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


class Shutdown:
    """Ends a server in steps: no new requests; errors for those that last too long; the end."""

    def __init__(
        self, server: uvicorn.Server, app: RouterApp, *, delay_s: float, timeout_s: float
    ) -> None:
        self._server = server
        self._app = app
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._seen: set[signal.Signals] = set()

    def on_signal(self, received: signal.Signals) -> None:
        """Begin to stop, or hurry up.

        Ctrl-C reaches a whole process group and a supervisor passes on a SIGTERM, so only a
        second signal of the same kind is a human's second thought.
        """
        if received in self._seen:
            logger.info("stopping at once signal=%s", received.name)
            self.abort()
            return
        if not self._seen:
            logger.info(
                "stopping signal=%s delay_s=%g timeout_s=%g",
                received.name,
                self._delay_s,
                self._timeout_s,
            )
            self._app.begin_shutdown()
            asyncio.get_running_loop().call_later(self._delay_s, self._stop_accepting)
        self._seen.add(received)

    def stop_once(self) -> None:
        """Begin to stop, however often this is asked for."""
        if not self._seen:
            self.on_signal(signal.SIGTERM)

    def _stop_accepting(self) -> None:
        self._server.should_exit = True
        asyncio.get_running_loop().call_later(self._timeout_s, self.abort)

    def abort(self) -> None:
        """End what is in flight with errors, and soon after without."""
        self._server.should_exit = True
        self._app.abort_all()
        asyncio.get_running_loop().call_later(FLUSH_S, self._force)

    def _force(self) -> None:
        # uvicorn would log a traceback for every client that has not read its error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._server.force_exit = True


def _supervise(config: RouterConfig, api_keys: tuple[str, ...], listener: socket.socket) -> int:
    # What is wrong with the configuration is told once, and before there are workers.
    unused = CollectorRegistry()
    dispatcher = PoolDispatcher(config, unused, environment=os.environ)
    RouterApp(config, dispatcher, unused, api_keys=api_keys)
    memory = WorkerMemory(config.workers)

    def work(number: int) -> int:
        share = WorkerShare(memory, number)
        values.ValueClass = share.values.value_class()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, api_keys, listener, share))
        return 0

    stop_s = config.shutdown_delay + config.shutdown_timeout + FLUSH_S + STOP_MARGIN_S
    supervisor = Supervisor(memory, work, stop_s=stop_s)
    _log_address(config, listener)
    gc.collect()
    gc.freeze()
    return supervisor.run(on_stop=listener.close)


async def _serve(
    config: RouterConfig,
    api_keys: tuple[str, ...],
    listener: socket.socket,
    share: WorkerShare | None = None,
) -> None:
    registry = _registry() if share is None else share.registry()
    dispatcher = PoolDispatcher(config, registry, environment=os.environ, share=share)
    app = RouterApp(config, dispatcher, registry, api_keys=api_keys, environment=os.environ)
    served = uvicorn_config(app)
    server = QuietServer(served) if share is None else WorkerServer(served, share)
    shutdown = Shutdown(
        server, app, delay_s=config.shutdown_delay, timeout_s=config.shutdown_timeout
    )
    _handle_signals(shutdown, is_worker=share is not None)
    async with app.running():
        if share is not None:
            await share.joined()
            share.serve()
        if share is None:
            _log_address(config, listener)
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await server.serve(sockets=[listener])
    logger.info("stopped")


def _log_address(config: RouterConfig, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    logger.info(
        "listening host=%s port=%d replicas=%d workers=%d",
        host,
        port,
        len(config.replicas),
        config.workers,
    )


def _handle_signals(shutdown: Shutdown, *, is_worker: bool) -> None:
    loop = asyncio.get_running_loop()
    if is_worker:
        loop.add_signal_handler(signal.SIGTERM, shutdown.stop_once)
        loop.add_signal_handler(HURRY, shutdown.abort)
        # The supervisor started it with these kept waiting.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, HURRY})
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, shutdown.on_signal, number)


def uvicorn_config(app: RouterApp) -> uvicorn.Config:
    """Return how uvicorn serves the application; signals, sockets and lifespan are ours."""
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,  # its own would have query strings and no request ids
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in (*OWN_COLLECTORS, LoneProcessCollector()):
        registry.register(collector)
    return registry


def _listener(host: str, port: int) -> socket.socket:
    is_v6 = ":" in host
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_v6 and host == "::"
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # no wheels for Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _configure_logging(config: RouterConfig) -> None:
    configure_logging(config.log_level, config.log_format)
    if config.log_level != "debug":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        # Asked for by a flag of its own: --log-level does not hide it.
        access_logger.setLevel(logging.INFO)
