"""Whether what a spec names exists: Secrets and claims that belong to the user.

Only their metadata is asked for, and where the operator's account may not even read that, nothing
is known, which plans take for "present": the kubelet will say otherwise if it is not.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from quire_operator.errors import ForbiddenError, NotFoundError
from quire_operator.plan import ObjectKey
from quire_operator.runtime.kube import METADATA, KubeApi
from quire_operator.runtime.resources import CLAIMS, SECRETS, by_api

_KINDS = by_api((SECRETS, CLAIMS))


class References:
    """Remembers for a while what exists, shorter what does not."""

    def __init__(
        self,
        api: KubeApi,
        *,
        present_s: float = 300.0,
        absent_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._present_s = present_s
        self._absent_s = absent_s
        self._clock = clock
        self._known: dict[ObjectKey, tuple[bool | None, float]] = {}

    async def look_up(self, keys: Iterable[ObjectKey]) -> Mapping[ObjectKey, bool]:
        """Return whether each object exists; those that may not be read are left out."""
        found: dict[ObjectKey, bool] = {}
        for key in keys:
            exists = await self._exists(key)
            if exists is not None:
                found[key] = exists
        return found

    async def _exists(self, key: ObjectKey) -> bool | None:
        exists, until = self._known.get(key, (None, 0.0))
        if self._clock() < until:
            return exists
        exists = await self._ask(key)
        lifetime_s = self._absent_s if exists is False else self._present_s
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[key] = exists, self._clock() + lifetime_s
        return exists

    async def _ask(self, key: ObjectKey) -> bool | None:
        resource = _KINDS.get((key.api_version, key.kind))
        if resource is None:
            return None
        try:
            await self._api.get(resource, key.namespace, key.name, accept=METADATA)
        except NotFoundError:
            return False
        except ForbiddenError:
            return None
        return True
