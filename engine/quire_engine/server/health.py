"""grpc.health.v1 that follows what the engine does rather than whether its process lives."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2

SERVICE_NAME = "quire.engine.v1.Engine"
SERVICES = ("", SERVICE_NAME)
MAX_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What health depends on, at one moment."""

    is_ready: bool
    is_draining: bool
    is_dead: bool
    is_working: bool
    """The core has something to compute, so that silence means a long step or a hung one."""
    last_progress_s: float
    """Seconds since the last sign of the core: a step, or that it is alive and idle."""


NOT_READY = Vitals(
    is_ready=False, is_draining=False, is_dead=False, is_working=False, last_progress_s=0.0
)


def is_serving(vitals: Vitals, *, hang_timeout_s: float) -> bool:
    """Return whether new requests should come here."""
    if not vitals.is_ready or vitals.is_draining or vitals.is_dead:
        return False
    return not (vitals.is_working and vitals.last_progress_s > hang_timeout_s)


class HealthReporter:
    """Keeps the health service at what the vitals say."""

    def __init__(self, vitals: Callable[[], Vitals], *, hang_timeout_s: float) -> None:
        self.servicer = health.aio.HealthServicer()
        self._vitals = vitals
        self._hang_timeout_s = hang_timeout_s
        self._reported: bool | None = None

    async def update(self) -> None:
        """Report a change, if there is one, at once."""
        serving = is_serving(self._vitals(), hang_timeout_s=self._hang_timeout_s)
        if serving == self._reported:
            return
        self._reported = serving
        status = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def run(self) -> None:
        """Update for ever: a hang is noticed by looking, since nothing else happens."""
        while True:
            await self.update()
            await asyncio.sleep(min(MAX_INTERVAL_S, self._hang_timeout_s / 4))
