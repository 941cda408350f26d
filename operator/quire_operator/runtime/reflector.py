"""One list and watch, which keeps a part of the store true.

Begins with a list and follows with a watch from the list's version. A connection that breaks is
taken up where it ended. A version that the server no longer has (410), an error in the stream, or
silence for longer than bookmarks allow begins again with a list: what was deleted meanwhile is
found missing in it. Kopf's watches do the same, but do not tell what a new list no longer has, so
that what is deleted while a watch is down would stay for ever.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from quire_operator.errors import (
    ForbiddenError,
    GoneError,
    KubeError,
    NotFoundError,
    UnavailableError,
)
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi, sleep_jittered
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.resources import Resource, revision
from quire_operator.runtime.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectorTimes:
    """How patient a reflector is, in seconds."""

    silence_s: float = 120.0
    """Longest time without an event or a bookmark, which come every minute."""
    max_backoff_s: float = 10.0
    """Longest wait between tries while the server is out of reach."""
    forbidden_s: float = 60.0
    """Wait before a list that was forbidden, or an API that was missing, is tried again."""


class Reflector:
    """Mirrors the objects of one kind, in one namespace or in all, that a selector matches."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        metrics: OperatorMetrics,
        resource: Resource,
        *,
        namespace: str = "",
        selector: str = "",
        times: ReflectorTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.synced = asyncio.Event()
        self.is_forbidden = False
        self._api = api
        self._store = store
        self._metrics = metrics
        self._selector = selector
        self._times = times or ReflectorTimes()
        self._clock = clock
        self._alive_at = clock()
        self._heard_at = clock()
        self._num_failures = 0

    @property
    def name(self) -> str:
        """The kind, and the namespace if there is one, for logs and health."""
        return f"{self.resource.kind}@{self.namespace}" if self.namespace else self.resource.kind

    @property
    def stuck_for_s(self) -> float:
        """How long nothing happened here, not even a failure."""
        return self._clock() - self._alive_at

    @property
    def silent_for_s(self) -> float:
        """How long ago the server last said anything."""
        return self._clock() - self._heard_at

    async def run(self) -> None:
        """Mirror until cancelled."""
        reason = "start"
        while True:
            try:
                self._metrics.relists.labels(self.resource.kind, reason).inc()
                version = await self._list()
                self.is_forbidden = False
                self.synced.set()
                reason = await self._follow(version)
            except (ForbiddenError, NotFoundError) as error:
                await self._wait_for_access(error)
                reason = "forbidden"
            except KubeError as error:
                reason = await self._wait_after(error)

    async def _list(self) -> int:
        items: list[Manifest] = []
        token = ""
        while True:
            page = await self._api.list_page(
                self.resource, self.namespace, selector=self._selector, token=token
            )
            self._note_heard()
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                break
        version = int(page["metadata"]["resourceVersion"])
        self._store.replace(self.resource, self.namespace, items, version)
        return version

    async def _follow(self, version: int) -> str:
        """Watch on and on; return why a new list is needed."""
        while True:
            opened_at = self._clock()
            try:
                async with self._api.watch(
                    self.resource,
                    self.namespace,
                    selector=self._selector,
                    resource_version=str(version),
                ) as batches:
                    while (batch := await self._next(batches)) is not None:
                        version = max(version, self._take(batch))
            except TimeoutError:
                logger.warning(
                    "watch silent, listing again kind=%s silence_s=%g",
                    self.name, self._times.silence_s,
                )  # fmt: skip
                return "silence"
            except GoneError:
                return "gone"
            except UnavailableError as error:
                await self._wait_after(error)
            if self._clock() - opened_at < 1.0:
                # Some proxies end every watch at once.
                await sleep_jittered(1.0)

    async def _next(self, batches: AsyncIterator[list[Manifest]]) -> list[Manifest] | None:
        async with asyncio.timeout(self._times.silence_s):
            batch = await anext(batches, None)
        self._note_heard()
        return batch

    def _take(self, batch: list[Manifest]) -> int:
        """Put events into the store; return the newest version."""
        version = -1
        self._metrics.watch_events.labels(self.resource.kind).inc(len(batch))
        for event in batch:
            manifest = event["object"]
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    version = max(version, revision(manifest))
                    self._store.put(self.resource, manifest)
                case "DELETED":
                    version = max(version, revision(manifest))
                    self._store.remove(self.resource, manifest)
                case "BOOKMARK":
                    version = max(version, revision(manifest))
                    self._store.bookmark(self.resource, version)
                case _:
                    # An ERROR carries a Status. Whatever it says, a new list mends it.
                    raise GoneError(str(manifest.get("message")), status=410)
        return version

    def _note_heard(self) -> None:
        self._alive_at = self._heard_at = self._clock()
        self._num_failures = 0

    async def _wait_for_access(self, error: KubeError) -> None:
        self._alive_at = self._clock()
        if not self.is_forbidden:
            logger.warning("cannot watch kind=%s error=%s", self.name, error)
        self.is_forbidden = True
        self._store.clear(self.resource)
        self.synced.set()
        await sleep_jittered(self._times.forbidden_s)
        self._alive_at = self._clock()

    async def _wait_after(self, error: KubeError) -> str:
        self._alive_at = self._clock()
        self._num_failures += 1
        delay_s = min(self._times.max_backoff_s, 0.2 * 2.0 ** min(self._num_failures, 16))
        if self._num_failures in (1, 5):
            logger.warning("watch interrupted kind=%s error=%s", self.name, error)
        await sleep_jittered(delay_s)
        return "error"
