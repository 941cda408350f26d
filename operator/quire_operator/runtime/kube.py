"""Requests to the API server.

On the client of `kubernetes.aio`: its configuration, credentials and their renewal, TLS and
connection pool. Its generated models are left out: plans and watch events are plain JSON already,
and turning them into models and back costs more than the request.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from quire_operator.errors import ConfigError, KubeError, UnavailableError
from quire_operator.plan import Manifest
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.resources import Resource

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

_UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)


async def load_configuration(kubeconfig: str, *, max_connections: int) -> Configuration:
    """Return the credentials of a kubeconfig file, or those of the pod where `kubeconfig` is "".

    Raises:
        ConfigError: neither can be used.
    """
    configuration = Configuration(
        connection_pool_maxsize=max_connections,
        # Else aiohttp looks into ~/.netrc, in another thread, for every single request.
        client_session_kwargs={"trust_env": False},
    )
    try:
        if kubeconfig:
            await kube_config.load_kube_config(kubeconfig, client_configuration=configuration)
        else:
            kube_config.load_incluster_config(client_configuration=configuration)
    except (kube_config.ConfigException, OSError, ValueError) as error:
        source = f"kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account"
        raise ConfigError(
            f"no way to the API server through {source}: {error}; "
            "give --kubeconfig PATH, or run in a pod with a service account"
        ) from error
    if not configuration.proxy and not proxy_bypass(urlsplit(configuration.host).hostname or ""):
        configuration.proxy = getproxies().get("https")
    return configuration


class KubeApi:
    """What the operator asks of the API server. Every failure is a `KubeError`."""

    def __init__(
        self,
        configuration: Configuration,
        metrics: OperatorMetrics,
        *,
        field_manager: str,
        request_timeout_s: float = 30.0,
    ) -> None:
        self.configuration = configuration
        self.client = ApiClient(configuration)
        self.metrics = metrics
        self._field_manager = field_manager
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s, sock_connect=10.0)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()
        # TLS connections end some turns of the loop later.
        await asyncio.sleep(0.05)

    async def get(
        self, resource: Resource, namespace: str, name: str, *, accept: str = "application/json"
    ) -> Manifest:
        """Read one object.

        Raises:
            NotFoundError: there is none of that name.
        """
        return await self._json("GET", resource.path(namespace, name), accept=accept)

    async def list_page(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        selector: str = "",
        limit: int = 500,
        token: str = "",
        accept: str = "application/json",
    ) -> Manifest:
        """Read one page of a collection; `metadata.continue` is the next page's token."""
        query = {"labelSelector": selector, "limit": str(limit), "continue": token}
        return await self._json("GET", resource.path(namespace), query, accept=accept)

    async def apply(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Server-side apply a complete intent, taking over its fields; return the live object."""
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": self._field_manager, "force": "true"}
        return await self._json("PATCH", path, query, body=manifest, content_type=APPLY_PATCH)

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: Manifest
    ) -> Manifest:
        """Merge-patch the status subresource; return the live object.

        Raises:
            ConflictError: the patch names a resource version, and the object has another one.
        """
        path = resource.path(namespace, name, "status")
        query = {"fieldManager": self._field_manager}
        return await self._json("PATCH", path, query, body=patch, content_type=MERGE_PATCH)

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Manifest
    ) -> Manifest:
        """Merge-patch an object; return it."""
        path = resource.path(namespace, name)
        query = {"fieldManager": self._field_manager}
        return await self._json("PATCH", path, query, body=patch, content_type=MERGE_PATCH)

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Create an object.

        Raises:
            ConflictError: there is one of that name.
        """
        path = resource.path(manifest["metadata"].get("namespace", ""))
        query = {"fieldManager": self._field_manager}
        return await self._json("POST", path, query, body=manifest)

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Write an object as a whole; return it.

        Raises:
            ConflictError: it is not the version any more that the manifest names.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": self._field_manager}
        return await self._json("PUT", path, query, body=manifest)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str
    ) -> Manifest | None:
        """Delete an object if it is still the one of this uid; return it while it terminates.

        Raises:
            NotFoundError: it is gone.
            ConflictError: another object has its name.
        """
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        answer = await self._json("DELETE", resource.path(namespace, name), body=body)
        return answer if answer.get("kind") != "Status" else None

    async def raw(self, path: str, *, accept: str = "application/json") -> Manifest:
        """Read a path that is no object: discovery, version."""
        return await self._json("GET", path, accept=accept)

    @contextlib.asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str,
        *,
        selector: str,
        resource_version: str,
        server_timeout_s: float = 300.0,
    ) -> AsyncIterator[AsyncIterator[list[Manifest]]]:
        """Open a watch with bookmarks; it yields batches of events, as they come off the wire.

        Raises:
            GoneError: the resource version is too old, when opening; later it is an ERROR event.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "resourceVersion": resource_version,
            # Spread, so that a thousand watches do not reconnect in one second.
            "timeoutSeconds": str(int(server_timeout_s * random.uniform(1.0, 1.3))),
        }
        patience = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        response = await self._send("GET", resource.path(namespace), query, patience=patience)
        try:
            yield _events(response)
        finally:
            response.close()

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Manifest | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Manifest:
        response = await self._send(
            method, path, query or {}, body=body, accept=accept, content_type=content_type
        )
        try:
            answer: Manifest = msgspec.json.decode(await response.read())
        except _UNREACHABLE as error:
            raise UnavailableError(f"the API server broke off: {_said(error)}") from error
        except msgspec.DecodeError as error:
            raise UnavailableError(f"no JSON from {path}: {error}") from error
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Manifest | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
        patience: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        given = urlencode([item for item in query.items() if item[1]])
        url = f"{self.configuration.host}{path}" + (f"?{given}" if given else "")
        headers = {
            "Accept": accept,
            "Content-Type": content_type,
            "User-Agent": self._field_manager,
        }
        try:
            token = await self.configuration.get_api_key_with_prefix("BearerToken")
            if token:
                headers["Authorization"] = token
            answer = await self.client.call_api(
                method, url, headers, body=body, _request_timeout=patience or self._timeout
            )
        except _UNREACHABLE as error:
            self.metrics.requests.labels(code="<error>", method=method).inc()
            raise UnavailableError(f"the API server is out of reach: {_said(error)}") from error
        response: aiohttp.ClientResponse = answer.response
        self.metrics.requests.labels(code=str(response.status), method=method).inc()
        if response.status >= 300:
            raise await _error(response)
        return response


async def _error(response: aiohttp.ClientResponse) -> KubeError:
    try:
        text = await response.read()
    except _UNREACHABLE:
        text = b""
    answer: Any = None
    with contextlib.suppress(msgspec.DecodeError):
        answer = msgspec.json.decode(text)
    if not isinstance(answer, dict):
        # A proxy in front of the server answers in HTML or plain text.
        answer = {"message": text[:300].decode(errors="replace").strip()}
    return KubeError.of(response.status, answer)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[list[Manifest]]:
    """Yield the events of each chunk: one burst of the server is one batch for the store."""
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                yield decode_events(lines)
    except _UNREACHABLE as error:
        raise UnavailableError(f"the watch broke off: {_said(error)}") from error


def decode_events(lines: Sequence[bytes]) -> list[Manifest]:
    """Decode watch events, one a line."""
    try:
        return [msgspec.json.decode(line) for line in lines if line]
    except msgspec.DecodeError as error:
        raise UnavailableError(f"the watch sent no JSON: {error}") from error


async def sleep_jittered(delay_s: float) -> None:
    """Sleep between half and all of a delay."""
    await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()
