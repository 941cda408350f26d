"""grpc.health.v1 that follows what the engine does rather than whether its process lives.

service                          SERVING means
"" and quire.engine.v1.Engine    new requests are welcome: for start-up and readiness probes
liveness                         a restart would not help: it loads, works, idles or drains
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2

SERVICE_NAME = "quire.engine.v1.Engine"
SERVICES = ("", SERVICE_NAME)
LIVENESS_SERVICE = "liveness"
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

    @property
    def stalled_s(self) -> float:
        """Seconds without progress while there is work; 0 while there is none."""
        return self.last_progress_s if self.is_working else 0.0


NOT_READY = Vitals(
    is_ready=False, is_draining=False, is_dead=False, is_working=False, last_progress_s=0.0
)


def is_serving(vitals: Vitals, *, hang_timeout_s: float) -> bool:
    """Return whether new requests should come here."""
    is_open = vitals.is_ready and not vitals.is_draining
    return is_open and is_alive(vitals, hang_timeout_s=hang_timeout_s)


def is_alive(vitals: Vitals, *, hang_timeout_s: float) -> bool:
    """Return whether what runs here is worth keeping: it is neither dead nor hung."""
    is_hung = vitals.is_working and vitals.last_progress_s > hang_timeout_s
    return not (vitals.is_dead or is_hung)


class HealthReporter:
    """Keeps the health service at what the vitals say."""

    def __init__(self, vitals: Callable[[], Vitals], *, hang_timeout_s: float) -> None:
        self.servicer = health.aio.HealthServicer()
        self._vitals = vitals
        self._hang_timeout_s = hang_timeout_s
        self._reported: tuple[bool, bool] | None = None

    async def update(self) -> None:
        """Report a change, if there is one, at once."""
        vitals = self._vitals()
        serving = is_serving(vitals, hang_timeout_s=self._hang_timeout_s)
        alive = is_alive(vitals, hang_timeout_s=self._hang_timeout_s)
        if (serving, alive) == self._reported:
            return
        self._reported = serving, alive
        for service in SERVICES:
            await self.servicer.set(service, _status(serving))
        await self.servicer.set(LIVENESS_SERVICE, _status(alive))

    async def run(self) -> None:
        """Update for ever: a hang is noticed by looking, since nothing else happens."""
        while True:
            await self.update()
            await asyncio.sleep(min(MAX_INTERVAL_S, self._hang_timeout_s / 4))


def _status(is_good: bool) -> int:
    status = health_pb2.HealthCheckResponse
    return int(status.SERVING if is_good else status.NOT_SERVING)
