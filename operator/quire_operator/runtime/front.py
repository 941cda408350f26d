"""kopf: watches LLMDeployments and hands every event over.

Its handler only passes the event on: the store keeps the object, and the key is queued. There are
no change handlers, timers or daemons, so kopf adds no finalizer and no annotation, and writes
nothing. It runs in a thread with an event loop of its own, because it takes every task of its loop
for its own and cancels them all when it stops; when it breaks, it is started again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from quire_operator.plan import Manifest
from quire_operator.runtime.resources import GROUP, PLURAL

logger = logging.getLogger(__name__)

_VERSION = "v1alpha1"
_HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontConfig:
    """What kopf needs to know."""

    configuration: Configuration
    namespaces: Sequence[str] = ()
    """Namespaces to watch; none means all."""
    restart_s: float = 2.0
    """Wait before kopf is started again after an error."""


class Front:
    """The thread in which kopf runs."""

    def __init__(
        self,
        config: FrontConfig,
        on_event: Callable[[str | None, Manifest], None],
        on_restart: Callable[[], None],
    ) -> None:
        """Prepare. `on_event(type, object)` runs in the loop that calls `start`."""
        self._config = config
        self._on_event = on_event
        self._on_restart = on_restart
        self._stop = threading.Event()
        self._restart = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat_at = time.monotonic()

    @property
    def stuck_for_s(self) -> float:
        """How long ago kopf's event loop last turned."""
        return time.monotonic() - self._beat_at

    def start(self) -> None:
        """Start watching."""
        self._loop = asyncio.get_running_loop()
        self._beat_at = time.monotonic()
        self._thread.start()

    def restart(self) -> None:
        """Start kopf anew, with a new list: something it should have seen is missing."""
        self._restart.set()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._watch())
            except Exception as error:
                logger.warning("kopf ended, starting it again error=%r", error)
            self._beat_at = time.monotonic()
            if not self._stop.is_set():
                self._hand_over(self._on_restart)
                self._restart.clear()
                self._stop.wait(self._config.restart_s)

    async def _watch(self) -> None:
        ended = asyncio.Event()
        beat = asyncio.create_task(self._beat(ended))
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not self._config.namespaces,
                namespaces=list(self._config.namespaces),
                stop_flag=ended,
            )
        finally:
            beat.cancel()
            # TLS connections end some turns of the loop later.
            await asyncio.sleep(0.05)

    async def _beat(self, ended: asyncio.Event) -> None:
        next_beat = 0.0
        while not self._stop.is_set() and not self._restart.is_set():
            if time.monotonic() >= next_beat:
                self._beat_at = time.monotonic()
                next_beat = self._beat_at + _HEARTBEAT_S
            await asyncio.sleep(0.1)
        ended.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await connection_info(self._config.configuration)

        @kopf.on.event(GROUP, _VERSION, PLURAL, registry=registry)
        async def pass_on(event: Any, **_: Any) -> None:
            self._hand_over(self._on_event, event["type"], event["object"])

        return registry

    def _hand_over(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None, "start() was called"
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The process is on its way out, and its loop is closed already.
            self._stop.set()


def kopf_settings() -> kopf.OperatorSettings:
    """Return settings under which kopf only watches, and notices when a watch goes dead."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # Discovery once: the process waits for the CRD itself, and needs no rights on others.
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.watching.connect_timeout = 5.0
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330.0
    settings.watching.reconnect_backoff = 0.5
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = (0.5, 1, 2, 5)
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    return settings


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """Give kopf the credentials of our own client, for as long as a token may live in memory."""
    token = await configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, value = token.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=value or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
        # Service account tokens are renewed in their file; kopf logs in again in time.
        expiration=datetime.now(UTC) + timedelta(minutes=10),
    )
