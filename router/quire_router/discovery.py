"""Where replicas are: each discovery names the complete set, again and again.

A source that cannot be asked leaves the last known set in place: a name server that is down must
not take the engines with it.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

from quire_router.errors import ConfigError

logger = logging.getLogger(__name__)

DNS_SCHEME = "dns:///"
NUM_ABSENCES = 2
"""An address is gone when so many look-ups in a row did not have it: answers may be partial."""

Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
"""Returns the IP addresses of a host; raises OSError."""


class Discovery(Protocol):
    """A source of gRPC targets."""

    def watch(self) -> AsyncIterator[frozenset[str]]:
        """Yield the complete set of targets at first, and whenever it changes."""
        ...


class StaticDiscovery:
    """Targets that never change."""

    def __init__(self, targets: Iterable[str]) -> None:
        self._targets = frozenset(targets)

    async def watch(self) -> AsyncIterator[frozenset[str]]:
        yield self._targets


class DnsDiscovery:
    """Every address of a name is a replica, as with a headless Service."""

    def __init__(
        self, host: str, port: int, *, interval_s: float, resolve: Resolve | None = None
    ) -> None:
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
            return frozenset(self._absences)
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


def parse_replicas(replicas: Iterable[str], *, dns_interval_s: float) -> list[Discovery]:
    """Return the sources that `--replicas` names; commas separate as well as repetition does.

    Raises:
        ConfigError: an entry is neither host:port, unix:/path nor dns:///name:port.
    """
    entries = [part.strip() for entry in replicas for part in entry.split(",") if part.strip()]
    named = [entry for entry in entries if entry.startswith(DNS_SCHEME)]
    static = frozenset(_checked(entry) for entry in entries if entry not in named)
    sources: list[Discovery] = [
        DnsDiscovery(*_host_port(entry, entry.removeprefix(DNS_SCHEME)), interval_s=dns_interval_s)
        for entry in dict.fromkeys(named)
    ]
    return [StaticDiscovery(static), *sources] if static else sources


def _checked(entry: str) -> str:
    if entry.startswith(("unix:", "unix-abstract:")):
        return entry
    _host_port(entry, entry)
    return entry


def _host_port(entry: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(
            f"a replica must be host:port, unix:/path or dns:///name:port, not {entry!r}"
        )
    return host.strip("[]"), int(port)
