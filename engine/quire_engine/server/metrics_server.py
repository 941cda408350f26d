"""Serves /metrics over HTTP."""

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from quire_engine.errors import ConfigError


class MetricsServer:
    """Serves /metrics from a thread of its own, with a registry of its own."""

    def __init__(self, *, host: str, port: int) -> None:
        """Bind and start, with nothing but the process to tell of.

        Raises:
            ConfigError: the port is taken.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {error.strerror} (--metrics-port)"
            ) from error

    @property
    def port(self) -> int:
        return self._server.server_port

    def add(self, metrics: Collector) -> None:
        self._registry.register(metrics)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
