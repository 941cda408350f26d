"""The reflectors of one process: which kinds are mirrored, and whether all are there."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from quire_operator.errors import KubeError
from quire_operator.runtime.discovery import ServerApis, discover
from quire_operator.runtime.kube import KubeApi, sleep_jittered
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.reflector import Reflector
from quire_operator.runtime.resources import (
    BUILT_IN_CHILDREN,
    DEPLOYMENTS,
    NODES,
    PODS,
    Resource,
    by_api,
)
from quire_operator.runtime.store import Store

logger = logging.getLogger(__name__)

_REDISCOVER_S = 60.0


class Informers:
    """Starts a reflector for every kind that the server has, and follows what it gains or loses."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        metrics: OperatorMetrics,
        *,
        namespaces: Sequence[str],
        selector: str,
        node_selector: str | None,
        on_new_apis: Callable[[], None],
    ) -> None:
        """Prepare. A `node_selector` of None leaves nodes alone, "" takes all."""
        self.apis = ServerApis()
        self.resources = by_api((*BUILT_IN_CHILDREN, PODS))
        self.synced = asyncio.Event()
        self.crd_found = asyncio.Event()
        self._api = api
        self._store = store
        self._metrics = metrics
        self._namespaces = tuple(namespaces) or ("",)
        self._selector = selector
        self._node_selector = node_selector
        self._on_new_apis = on_new_apis
        self._running: dict[Reflector, asyncio.Task[None]] = {}

    @property
    def has_crd(self) -> bool:
        """Whether the server knows LLMDeployments."""
        return self.crd_found.is_set()

    @property
    def reflectors(self) -> list[Reflector]:
        """All reflectors that run."""
        return list(self._running)

    @property
    def longest_stuck_s(self) -> float:
        """How long the reflector that is worst off has not done anything."""
        return max((reflector.stuck_for_s for reflector in self._running), default=0.0)

    def unsynced(self) -> str:
        """Name the kinds that are not mirrored, and why; "" if all are."""
        if not self.has_crd:
            return "the CRD llmdeployments.quire.dev is not installed, or not known yet"
        waiting = [item.name for item in self._running if not item.synced.is_set()]
        if waiting:
            return f"waiting for {', '.join(waiting)}"
        needed = (*BUILT_IN_CHILDREN, PODS)
        refused = [
            item.name for item in self._running if item.is_forbidden and item.resource in needed
        ]
        return f"no right to list and watch {', '.join(refused)}" if refused else ""

    async def run(self) -> None:
        """Mirror until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource in (*BUILT_IN_CHILDREN, PODS):
                self._start(group, resource)
            if self._node_selector is not None:
                self._start(group, NODES)
            while True:
                if await self._rediscover(group) and not self.synced.is_set():
                    await asyncio.gather(*(item.synced.wait() for item in self._running))
                    self.synced.set()
                    logger.info("caches filled num_kinds=%d", len(self._running))
                await sleep_jittered(_REDISCOVER_S if self.has_crd else 3.0)

    async def _rediscover(self, group: asyncio.TaskGroup) -> bool:
        """Look what the server has; return whether everything needed is there."""
        try:
            apis = await discover(self._api)
        except KubeError as error:
            logger.warning("discovery failed error=%s", error)
            return False
        had = self.has_crd
        if DEPLOYMENTS.api in apis.resources:
            self.crd_found.set()
        else:
            self.crd_found.clear()
        if not self.has_crd and (had or not self.apis.resources):
            logger.warning("waiting for the CRD llmdeployments.quire.dev: install crds/")
        changed = apis.optional() != self.apis.optional()
        self.apis = apis
        if changed:
            self._follow_optional(group, apis)
        return self.has_crd

    def _follow_optional(self, group: asyncio.TaskGroup, apis: ServerApis) -> None:
        wanted = by_api(apis.optional())
        built_in = by_api(BUILT_IN_CHILDREN).keys()
        for reflector, task in list(self._running.items()):
            api = reflector.resource.api
            if (
                api not in wanted
                and api not in built_in
                and reflector.resource not in (PODS, NODES)
            ):
                task.cancel()
                del self._running[reflector]
                self._store.clear(reflector.resource)
                self.resources.pop(api, None)
        for resource in wanted.values():
            if resource.api not in self.resources:
                self.resources[resource.api] = resource
                self._start(group, resource)
        self._on_new_apis()

    def _start(self, group: asyncio.TaskGroup, resource: Resource) -> None:
        is_node = resource is NODES
        selector = self._node_selector or "" if is_node else self._selector
        for namespace in ("",) if is_node else self._namespaces:
            reflector = Reflector(
                self._api,
                self._store,
                self._metrics,
                resource,
                namespace=namespace,
                selector=selector,
            )
            self._running[reflector] = group.create_task(reflector.run(), name=reflector.name)
