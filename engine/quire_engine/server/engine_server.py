"""The gRPC server of one engine: bound first, serving once there is an engine to serve."""

import asyncio
import errno
import logging
import socket
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from quire_engine.errors import ConfigError
from quire_engine.rpc.engine_pb2_grpc import add_EngineServicer_to_server
from quire_engine.server.config import ServerConfig
from quire_engine.server.health import NOT_READY, SERVICE_NAME, HealthReporter, Vitals
from quire_engine.server.service import EngineService, Serving

logger = logging.getLogger(__name__)


class EngineServer:
    """Owns the socket, the service and its health; knows nothing of processes and signals."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._serving: Serving | None = None
        self._service = EngineService(max_buffered_outputs=config.max_buffered_outputs)
        self.health = HealthReporter(self._vitals, hang_timeout_s=config.hang_timeout_s)
        self._server = grpc.aio.server(options=_channel_options(config))
        self._health_task: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Bind and answer; health is NOT_SERVING and calls are UNAVAILABLE until `serve`.

        Raises:
            ConfigError: the address is in use or cannot be bound.
        """
        _add_services(self._server, self._service, self.health)
        self.address = _bind(self._server, self._config)
        await self.health.update()
        await self._server.start()
        self._health_task = asyncio.create_task(self.health.run())

    async def serve(self, serving: Serving) -> None:
        """Serve from here on."""
        self._serving = serving
        self._service.serve(serving)
        await self.health.update()

    async def stop(self, *, grace_s: float) -> None:
        """End: calls that are still open get `grace_s` to finish."""
        if self._health_task is not None:
            self._health_task.cancel()
        await self.health.servicer.enter_graceful_shutdown()
        self._service.close()
        await self._server.stop(grace_s)

    def _vitals(self) -> Vitals:
        return NOT_READY if self._serving is None else self._serving.engine.vitals


def _channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        # With port sharing a second engine on the same port would get half of the requests.
        ("grpc.so_reuseport", 0),
        # Idle routers keep their streams alive with pings. By default the server counts those as
        # strikes and closes the connection, and with it every request in flight.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]


def _add_services(server: grpc.aio.Server, service: EngineService, health_: HealthReporter) -> None:
    add_EngineServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    """Bind and return the address that clients can dial."""
    if config.uds:
        _check_socket(Path(config.uds))
    try:
        port = server.add_insecure_port(config.address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {config.address}: {error}") from error
    return config.address if config.uds else f"{config.host}:{port}"


def _check_socket(path: Path) -> None:
    """Refuse a path where somebody listens, or that cannot be a socket; remove a stale one."""
    if not path.parent.is_dir():
        raise ConfigError(f"cannot listen on {path}: there is no directory {path.parent}")
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"cannot listen on {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise ConfigError(f"cannot listen on {path}: somebody does already")
    path.unlink()
