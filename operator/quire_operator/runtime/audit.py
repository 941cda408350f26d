"""Does what kopf told of LLMDeployments agree with the API server? Asked now and then.

kopf does not tell what was deleted while its watch was down, and watches have been known to die
without a word. A list of metadata finds both: objects that are gone are taken out of the store,
objects that are newer than what is known are read, and kopf is started again if it missed them.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from quire_operator.errors import KubeError, NotFoundError
from quire_operator.plan import Manifest, ObjectKey
from quire_operator.runtime.kube import METADATA_LIST, KubeApi
from quire_operator.runtime.resources import API_VERSION, DEPLOYMENTS, KIND, revision
from quire_operator.runtime.store import Store

logger = logging.getLogger(__name__)


class Audit:
    """Compares the store's deployments with the server's."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        *,
        namespaces: Sequence[str],
        on_missed: Callable[[], None],
        grace_s: float = 5.0,
    ) -> None:
        self._api = api
        self._store = store
        self._namespaces = namespaces or ("",)
        self._on_missed = on_missed
        self._grace_s = grace_s
        self._wanted = asyncio.Event()
        self.num_failed_in_a_row = 0

    def request(self) -> None:
        """Ask for an audit soon."""
        self._wanted.set()

    async def run(self, interval_s: float) -> None:
        """Audit at every interval and on request, until cancelled."""
        while True:
            self._wanted.clear()
            try:
                async with asyncio.timeout(interval_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            try:
                await self.audit()
            except KubeError as error:
                logger.warning("audit postponed error=%s", error)

    async def audit(self) -> None:
        """Compare once, and mend the differences.

        Raises:
            KubeError: the server cannot be asked.
        """
        listed, version = await self._list()
        self._evict(listed, version)
        behind = self._behind(listed)
        if behind:
            # The watch may only be a little late.
            await asyncio.sleep(self._grace_s)
            behind = self._behind(listed)
        num_missed = 0
        for key in behind:
            num_missed += await self._read(key)
        if num_missed:
            self.num_failed_in_a_row += 1
            logger.warning("kopf missed changes num_deployments=%d", num_missed)
            self._on_missed()
        else:
            self.num_failed_in_a_row = 0

    def problem(self) -> str:
        """Return what is wrong with kopf's watch, or ""."""
        if self.num_failed_in_a_row < 3:
            return ""
        return f"kopf missed changes in {self.num_failed_in_a_row} audits in a row"

    async def _list(self) -> tuple[dict[ObjectKey, int], int]:
        listed: dict[ObjectKey, int] = {}
        version = -1
        for namespace in self._namespaces:
            token = ""
            while True:
                page = await self._api.list_page(
                    DEPLOYMENTS, namespace, token=token, accept=METADATA_LIST
                )
                listed |= {_key(item): revision(item) for item in page.get("items") or ()}
                token = page["metadata"].get("continue", "")
                if not token:
                    break
            found = int(page["metadata"]["resourceVersion"])
            version = found if version < 0 else min(version, found)
        return listed, version

    def _evict(self, listed: dict[ObjectKey, int], version: int) -> None:
        for manifest in list(self._store.deployments.values()):
            key = _key(manifest)
            if key not in listed and revision(manifest) <= version:
                logger.info("deployment gone namespace=%s name=%s", key.namespace, key.name)
                self._store.discard(DEPLOYMENTS, key, manifest["metadata"]["uid"])

    def _behind(self, listed: dict[ObjectKey, int]) -> list[ObjectKey]:
        known = self._store.deployments
        return [
            key
            for key, version in listed.items()
            if revision(known.get((key.namespace, key.name), {})) < version
        ]

    async def _read(self, key: ObjectKey) -> bool:
        """Read a deployment into the store; return whether it is one that kopf missed."""
        try:
            manifest = await self._api.get(DEPLOYMENTS, key.namespace, key.name)
        except NotFoundError:
            return False
        self._store.put(DEPLOYMENTS, manifest)
        return True


def _key(manifest: Manifest) -> ObjectKey:
    metadata = manifest["metadata"]
    return ObjectKey(API_VERSION, KIND, metadata["namespace"], metadata["name"])
