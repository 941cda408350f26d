"""The two ports of the operator: metrics, and health for the kubelet."""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from quire_operator.errors import ConfigError
from quire_operator.runtime.health import Health, Report
from quire_operator.runtime.metrics import OperatorMetrics

logger = logging.getLogger(__name__)

_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class WebServer:
    """Serves /metrics on one address, /healthz and /readyz on another; "0" turns one off."""

    def __init__(
        self,
        metrics: OperatorMetrics,
        health: Health,
        *,
        metrics_address: str,
        health_address: str,
        on_scrape: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._addresses = (metrics_address, health_address)
        self._on_scrape = on_scrape
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        for address, application in zip(
            self._addresses, (self._metrics_application(), self._health_application()), strict=True
        ):
            if address != "0":
                await self._listen(address, application)

    async def stop(self) -> None:
        """Close the ports."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, address: str, application: web.Application) -> None:
        host, port = parse_address(address)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, host or None, port).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error

    def _metrics_application(self) -> web.Application:
        async def metrics(_: web.Request) -> web.Response:
            self._on_scrape()
            # A thousand deployments take a quarter of a second to write down.
            text = await asyncio.to_thread(self._metrics.render)
            return web.Response(body=text, headers={"Content-Type": _TEXT_FORMAT})

        application = web.Application()
        application.router.add_get("/metrics", metrics)
        return application

    def _health_application(self) -> web.Application:
        def answer(report: Report) -> web.Response:
            return web.Response(text=report.render(), status=200 if report.is_well else 500)

        async def healthz(_: web.Request) -> web.Response:
            return answer(self._health.alive())

        async def readyz(_: web.Request) -> web.Response:
            return answer(self._health.ready())

        application = web.Application()
        application.router.add_get("/healthz", healthz)
        application.router.add_get("/readyz", readyz)
        return application


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port`; the host may be missing, and an IPv6 one is in brackets.

    Raises:
        ConfigError: there is no port, or it is out of range.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {address!r} is not [HOST]:PORT with a port up to 65535")
    return host.strip("[]"), int(port)
