"""Kubernetes Events: told once per occurrence, never in the way of a reconcile."""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from quire_operator.errors import ConflictError, KubeError
from quire_operator.plan import Event, Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.resources import EVENTS

logger = logging.getLogger(__name__)

COMPONENT = "quire-operator"
_MAX_COUNTS = 10_000
"""Most Events that are counted up; beyond it, counting starts over."""
_MAX_MESSAGE = 1024
"""Longest message that the server takes."""


class EventRecorder:
    """Posts Events in the background; when the server cannot keep up, the oldest are dropped."""

    def __init__(
        self,
        api: KubeApi,
        metrics: OperatorMetrics,
        *,
        instance: str,
        now: Callable[[], datetime],
        max_pending: int = 1000,
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._instance = instance
        self._now = now
        self._counts: Counter[str] = Counter()
        self._pending: asyncio.Queue[Manifest] = asyncio.Queue(max_pending)

    @property
    def num_pending(self) -> int:
        """How many Events wait to be posted."""
        return self._pending.qsize()

    def post(self, deployment: Manifest, event: Event) -> None:
        """Queue an Event about a deployment."""
        if self._pending.full():
            self._pending.get_nowait()
        self._pending.put_nowait(event_manifest(deployment, event, self._instance, self._now()))

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            manifest = await self._pending.get()
            try:
                await self._post(manifest)
            except KubeError as error:
                logger.debug("event lost reason=%s error=%s", manifest["reason"], error)

    async def _post(self, manifest: Manifest) -> None:
        self._metrics.writes.labels("create", "Event").inc()
        try:
            await self._api.create(EVENTS, manifest)
        except ConflictError:
            await self._count_up(manifest)

    async def _count_up(self, manifest: Manifest) -> None:
        """Count an Event that is there already, without the right to read it."""
        metadata = manifest["metadata"]
        if len(self._counts) > _MAX_COUNTS:
            self._counts.clear()
        self._counts[metadata["name"]] += 1
        patch = {
            "count": 1 + self._counts[metadata["name"]],
            "lastTimestamp": manifest["lastTimestamp"],
        }
        await self._api.merge(EVENTS, metadata["namespace"], metadata["name"], patch)


def event_manifest(deployment: Manifest, event: Event, instance: str, now: datetime) -> Manifest:
    """Write a core/v1 Event. Equal occurrences have one name, so that they are counted."""
    about = deployment["metadata"]
    told = "\0".join((about["uid"], event.type, event.reason, event.message))
    digest = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about['name']}.{digest}", "namespace": about["namespace"]},
        "involvedObject": {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            "name": about["name"],
            "namespace": about["namespace"],
            "uid": about["uid"],
            "resourceVersion": about.get("resourceVersion", ""),
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
