"""Replicas from the EndpointSlices of a Service: list, watch, and list again whenever in doubt.

A watch that was missed a deletion would keep a dead pod for ever, so no watch is ever continued:
however it ended - by its time, an error, silence, a version that is gone - everything is listed
anew. When there is no list to be had, the last known set stays: an API server that is down must
not take the engines with it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from quire_router.backoff import Backoff
from quire_router.discovery_status import DiscoveryStatus
from quire_router.endpoint_slices import SERVICE_LABEL, EndpointSlices, ServiceName
from quire_router.kubernetes_api import ApiServerError, ObjectSource

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
MAX_RETRY_S = 10.0
MIN_WATCH_S = 1.0
"""A watch that ends sooner counts as failed, lest a broken proxy be asked without a pause."""


class KubernetesDiscovery:
    """Every endpoint of a Service that is serving and not terminating is a replica."""

    def __init__(self, service: ServiceName, api: ObjectSource, status: DiscoveryStatus) -> None:
        self.status = status
        self._service = service
        self._api = api
        self._slices = EndpointSlices(service.port)
        self._backoff = Backoff(first_s=FIRST_RETRY_S, max_s=MAX_RETRY_S)

    async def watch(self) -> AsyncIterator[frozenset[str]]:
        last: frozenset[str] | None = None
        while True:
            try:
                async for targets in self._listen():
                    if targets != last:
                        last = targets
                        yield targets
            except ApiServerError as error:
                await self._wait_after(error)

    async def _listen(self) -> AsyncIterator[frozenset[str]]:
        """Yield what a list says, and then what each event of one watch makes of it."""
        namespace = self._service.namespace or self._api.namespace
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        selector = f"{SERVICE_LABEL}={self._service.name}"
        listed = await self._api.list(path, label_selector=selector)
        self._slices.replace(listed.items)
        self.status.num_lists += 1
        yield self._told()
        started_at = time.monotonic()
        async for event in self._api.watch(
            path, label_selector=selector, resource_version=listed.resource_version
        ):
            if event.type != "BOOKMARK":
                self._slices.apply(event.type, event.object)
            self._backoff.reset()
            yield self._told()
        if time.monotonic() - started_at < MIN_WATCH_S:
            raise ApiServerError("short", "the watch ended as soon as it began")

    def _told(self) -> frozenset[str]:
        self.status.heard()
        self.status.endpoints = self._slices.targets()
        self.status.num_endpoints = self._slices.num_by_state()
        return frozenset(self.status.endpoints)

    async def _wait_after(self, error: ApiServerError) -> None:
        self.status.failed(error.reason)
        delay_s = self._backoff.next_s()
        logger.warning(
            "discovery interrupted source=%s reason=%s error=%s retry_s=%.1f",
            self.status.source,
            error.reason,
            error,
            delay_s,
        )
        await asyncio.sleep(delay_s)
