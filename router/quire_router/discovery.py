"""Where replicas are: each discovery names the complete set, again and again.

A source that cannot be asked leaves the last known set in place: a name server that is down must
not take the engines with it. Kubernetes' EndpointSlices are in `kubernetes_discovery.py`.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from quire_router.discovery_status import DiscoveryStatus
from quire_router.endpoint_slices import ServiceName
from quire_router.errors import ConfigError
from quire_router.kubernetes_api import InCluster, KubernetesApi
from quire_router.kubernetes_discovery import KubernetesDiscovery
from quire_router.pool_config import PoolConfig

logger = logging.getLogger(__name__)

DNS_SCHEME = "dns:///"
KUBERNETES_SCHEME = "kubernetes:///"
NUM_ABSENCES = 2
"""An address is gone when so many look-ups in a row did not have it: answers may be partial."""

Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
"""Returns the IP addresses of a host; raises OSError."""


class Discovery(Protocol):
    """A source of gRPC targets."""

    @property
    def status(self) -> DiscoveryStatus:
        """How well it is heard, for metrics."""
        ...

    def watch(self) -> AsyncIterator[frozenset[str]]:
        """Yield the complete set of targets at first, and whenever it changes."""
        ...


class StaticDiscovery:
    """Targets that never change."""

    def __init__(self, targets: Iterable[str]) -> None:
        self.status = DiscoveryStatus(source="static", can_go_stale=False)
        self._targets = frozenset(targets)

    async def watch(self) -> AsyncIterator[frozenset[str]]:
        yield self._targets


class DnsDiscovery:
    """Every address of a name is a replica, as with a headless Service."""

    def __init__(
        self, host: str, port: int, *, interval_s: float, resolve: Resolve | None = None
    ) -> None:
        self.status = DiscoveryStatus(source=f"{DNS_SCHEME}{target(host, port)}")
        self._host = host
        self._port = port
        self._interval_s = interval_s
        self._resolve = resolve or resolve_host
        self._absences: dict[str, int] = {}

    async def watch(self) -> AsyncIterator[frozenset[str]]:
        last: frozenset[str] | None = None
        while True:
            targets = await self._look_up()
            if targets != last:
                last = targets
                yield targets
            await asyncio.sleep(self._interval_s)

    async def _look_up(self) -> frozenset[str]:
        try:
            addresses = await self._resolve(self._host, self._port)
        except OSError as error:
            logger.warning("name not resolved host=%s error=%s", self._host, error)
            self.status.failed("unresolved")
            return frozenset(self._absences)
        self.status.heard()
        self.status.num_lists += 1
        found = {target(address, self._port) for address in addresses}
        absences = {known: num + 1 for known, num in self._absences.items() if known not in found}
        kept = {known: num for known, num in absences.items() if num < NUM_ABSENCES}
        self._absences = dict.fromkeys(found, 0) | kept
        return frozenset(self._absences)


async def resolve_host(host: str, port: int) -> set[str]:
    """Return all A and AAAA records of a host, as the system's resolver sees them."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(info[4][0]) for info in infos}


def target(address: str, port: int) -> str:
    """Return the gRPC target of an IP address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_replicas(config: PoolConfig, environment: Mapping[str, str]) -> list[Discovery]:
    """Return the sources that `--replicas` names; commas separate as well as repetition does.

    Raises:
        ConfigError: an entry is neither host:port, unix:/path, dns:///name:port nor
            kubernetes:///service.namespace:port, or the last outside a cluster.
    """
    parts = [part.strip() for entry in config.replicas for part in entry.split(",")]
    entries = list(dict.fromkeys(part for part in parts if part))
    named = [entry for entry in entries if entry.startswith((DNS_SCHEME, KUBERNETES_SCHEME))]
    static = frozenset(_checked(entry) for entry in entries if entry not in named)
    sources = [_named_source(entry, config, environment) for entry in named]
    return [StaticDiscovery(static), *sources] if static else sources


def _named_source(entry: str, config: PoolConfig, environment: Mapping[str, str]) -> Discovery:
    if entry.startswith(DNS_SCHEME):
        address = _host_port(entry, entry.removeprefix(DNS_SCHEME))
        return DnsDiscovery(*address, interval_s=config.dns_interval_s)
    service = ServiceName.parse(entry.removeprefix(KUBERNETES_SCHEME))
    cluster = InCluster.find(environment, config.service_account_dir)
    return KubernetesDiscovery(service, KubernetesApi(cluster), DiscoveryStatus(source=entry))


def _checked(entry: str) -> str:
    if entry.startswith(("unix:", "unix-abstract:")):
        return entry
    _host_port(entry, entry)
    return entry


def _host_port(entry: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(
            "a replica must be host:port, unix:/path, dns:///name:port or "
            f"kubernetes:///service.namespace:port, not {entry!r}"
        )
    return host.strip("[]"), int(port)
