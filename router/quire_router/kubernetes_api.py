"""A client for the two calls that discovery makes of a Kubernetes API server: list and watch.

Not the kubernetes package: these two calls are all that a router needs, that package would be a
tenth of its image and as much memory as the rest of it, and what matters here - a watch that ends
when the connection is silent, a token that is read anew - would still have to be built around it.
"""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from quire_router.errors import ConfigError

HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLE = "KUBERNETES_SERVICE_PORT"

CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 15.0
WATCH_S = 120
"""How long a watch lasts before the server ends it, and everything is listed anew."""
SILENCE_S = WATCH_S + 15.0
"""Without an event for so long a watch is taken for dead: the server should have ended it by then.
Bookmarks may come in between, but a quiet Service can be without one for all that time."""


class ApiServerError(Exception):
    """The API server refused, or could not be asked."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """For metrics: unreachable, silent, expired, forbidden, or the HTTP status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectList:
    """A complete list, and the version to watch from."""

    items: list[Mapping[str, Any]]
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One change: ADDED, MODIFIED, DELETED, or BOOKMARK, which changes nothing."""

    type: str
    object: Mapping[str, Any]


class ObjectSource(Protocol):
    """What discovery needs of an API server."""

    @property
    def namespace(self) -> str:
        """The namespace of the pod that asks."""
        ...

    async def list(self, path: str, *, label_selector: str) -> ObjectList:
        """Return all objects that match.

        Raises:
            ApiServerError: there is no list to be had.
        """
        ...

    def watch(
        self, path: str, *, label_selector: str, resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        """Yield changes until the server ends the watch.

        Raises:
            ApiServerError: the watch broke, fell silent, or asks for a version that is gone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InCluster:
    """Where the API server is, and who is asking, for a process in a pod."""

    base_url: str
    directory: Path
    """Holds token, ca.crt and namespace; all may be replaced at any time."""

    @classmethod
    def find(cls, environment: Mapping[str, str], directory: str) -> "InCluster":
        """Read what Kubernetes gives every pod.

        Raises:
            ConfigError: this process is in no pod, or has no service account.
        """
        host, port = environment.get(HOST_VARIABLE), environment.get(PORT_VARIABLE, "443")
        if not host:
            raise ConfigError(
                f"kubernetes:/// works inside a cluster only: {HOST_VARIABLE} is not set; "
                "elsewhere name replicas as host:port or dns:///name:port"
            )
        folder = Path(directory)
        missing = [name for name in ("token", "ca.crt") if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"kubernetes:/// needs a service account: {directory} has no "
                f"{' and no '.join(missing)}; set automountServiceAccountToken on the pod"
            )
        bracketed = f"[{host}]" if ":" in host else host
        return cls(base_url=f"https://{bracketed}:{port}", directory=folder)

    @property
    def namespace(self) -> str:
        file = self.directory / "namespace"
        return file.read_text().strip() if file.is_file() else "default"

    def headers(self) -> dict[str, str]:
        """Return the headers of a request, with the token that is valid now."""
        token = (self.directory / "token").read_text().strip()
        return {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def ssl_context(self) -> ssl.SSLContext:
        """Return what trusts the cluster's CA as it is now."""
        return ssl.create_default_context(cafile=self.directory / "ca.crt")


class KubernetesApi:
    """Lists and watches over HTTP. Every call has its own connection, token and CA."""

    def __init__(
        self, cluster: InCluster, *, watch_s: int = WATCH_S, silence_s: float = SILENCE_S
    ) -> None:
        self._cluster = cluster
        self._watch_s = watch_s
        self._silence_s = silence_s

    @property
    def namespace(self) -> str:
        return self._cluster.namespace

    async def list(self, path: str, *, label_selector: str) -> ObjectList:
        limits = aiohttp.ClientTimeout(total=LIST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        async with self._get(path, {"labelSelector": label_selector}, limits) as response:
            body = json.loads(await response.read())
        return ObjectList(
            items=body.get("items") or [], resource_version=body["metadata"]["resourceVersion"]
        )

    async def watch(
        self, path: str, *, label_selector: str, resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        parameters = {
            "labelSelector": label_selector,
            "resourceVersion": resource_version,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._watch_s),
        }
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._silence_s
        )
        async with self._get(path, parameters, limits) as response:
            async for line in _lines(response.content):
                yield _event(json.loads(line))

    @asynccontextmanager
    async def _get(
        self, path: str, parameters: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            connector = aiohttp.TCPConnector(
                ssl=self._cluster.ssl_context(), socket_factory=_keep_alive_socket
            )
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limits) as session,
                session.get(
                    self._cluster.base_url + path,
                    params=parameters,
                    headers=self._cluster.headers(),
                ) as response,
            ):
                if response.status != 200:
                    raise await _refusal(response, path)
                try:
                    yield response
                finally:
                    _abort(response)
        except aiohttp.ConnectionTimeoutError as error:
            raise ApiServerError(
                "unreachable", "the API server does not accept connections"
            ) from error
        except TimeoutError as error:
            raise ApiServerError("silent", "the API server said nothing for too long") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = f"cannot ask the API server: {str(error) or type(error).__name__}"
            raise ApiServerError("unreachable", message) from error


def _keep_alive_socket(address_info: Any) -> socket.socket:
    """Make a socket that notices within half a minute that the other side is gone."""
    family, kind, protocol, *_ = address_info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _abort(response: aiohttp.ClientResponse) -> None:
    """End the connection of a response that was not read to its end.

    Left to itself it would say goodbye in TLS and stay open, unwatched, until the other side does
    the same; a connection that is idle again is aborted with its session.
    """
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length; the stream's own reader refuses long ones."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


def _event(event: Mapping[str, Any]) -> WatchEvent:
    if event["type"] != "ERROR":
        return WatchEvent(type=event["type"], object=event["object"])
    status = event["object"]
    reason = "expired" if status.get("code") == 410 else str(status.get("code", "error"))
    raise ApiServerError(reason, f"the watch ended: {status.get('message', 'without a message')}")


async def _refusal(response: aiohttp.ClientResponse, path: str) -> ApiServerError:
    text = (await response.text())[:500]
    message = _message_of(text) or text or response.reason or ""
    if response.status == 403:
        hint = "the router's service account needs list and watch on endpointslices there"
        return ApiServerError("forbidden", f"{message}; {hint}")
    if response.status == 410:
        return ApiServerError("expired", message)
    return ApiServerError(str(response.status), f"{response.status} from {path}: {message}")


def _message_of(text: str) -> str:
    try:
        return str(json.loads(text).get("message", ""))
    except (ValueError, AttributeError):
        return ""
