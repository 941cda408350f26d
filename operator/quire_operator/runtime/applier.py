"""Carrying a plan out: the fewest writes that make the cluster what it says."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_operator.errors import (
    ConflictError,
    ForbiddenError,
    KubeError,
    NotFoundError,
    UnavailableError,
)
from quire_operator.plan import SPEC_HASH_ANNOTATION, Deletion, Manifest, ObjectKey, object_key
from quire_operator.runtime.drift import covers, is_current
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.resources import DEPLOYMENTS, Resource
from quire_operator.runtime.store import Store

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What became of the objects of a plan."""

    num_writes: int = 0
    errors: dict[ObjectKey, KubeError] = field(default_factory=dict)
    """Objects that the server refused, and why."""


class DeploymentGoneError(Exception):
    """The deployment that a plan was made for does not exist any more."""


class Applier:
    """Writes children; every answer goes to the store, so the next plan sees it at once."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        metrics: OperatorMetrics,
        resources: Mapping[tuple[str, str], Resource],
    ) -> None:
        self._api = api
        self._store = store
        self._metrics = metrics
        self._resources = resources
        self._settled: dict[ObjectKey, tuple[str, str]] = {}

    async def apply(
        self,
        deployment: Manifest,
        objects: tuple[Manifest, ...],
        live: Mapping[ObjectKey, Manifest],
    ) -> Outcome:
        """Apply the intents that differ from what lives, in order.

        An object that the server refuses is reported and the others are still applied; anything
        that another try may help ends the run.

        Raises:
            DeploymentGoneError: the deployment was deleted, or made anew under its name.
            KubeError: the server is unreachable or overloaded.
        """
        outcome = Outcome()
        is_verified = False
        for intent in objects:
            key = object_key(intent)
            known = live.get(key)
            if known is not None and self._is_current(key, known, intent):
                continue
            if known is None and not is_verified:
                await self._verify(deployment)
                is_verified = True
            try:
                await self._apply_one(key, intent)
                outcome.num_writes += 1
            except UnavailableError:
                raise
            except KubeError as error:
                if isinstance(error, ForbiddenError) and error.cause == "NamespaceTerminating":
                    raise DeploymentGoneError from error
                outcome.errors[key] = error
        return outcome

    async def delete(self, deletions: tuple[Deletion, ...]) -> int:
        """Delete objects that are still the ones that were meant; return the number of calls."""
        num_writes = 0
        for deletion in deletions:
            key = deletion.key
            resource = self._resources.get((key.api_version, key.kind))
            if resource is None:
                continue
            num_writes += 1
            await self._delete_one(resource, deletion)
            logger.info(
                "object deleted kind=%s namespace=%s name=%s reason=%s",
                key.kind, key.namespace, key.name, deletion.reason,
            )  # fmt: skip
        return num_writes

    def forget(self, keys: Mapping[ObjectKey, Manifest]) -> None:
        """Drop what is remembered of objects that are gone."""
        for key in keys:
            self._settled.pop(key, None)

    async def _apply_one(self, key: ObjectKey, intent: Manifest) -> None:
        resource = self._resources.get((key.api_version, key.kind))
        if resource is None:
            raise NotFoundError(f"the server has no {key.kind} in {key.api_version}", status=404)
        self._metrics.writes.labels("apply", key.kind).inc()
        answer = await self._api.apply(resource, intent)
        self._settled[key] = _fingerprint(answer, intent)
        self._store.put_answer(resource, answer)

    async def _delete_one(self, resource: Resource, deletion: Deletion) -> None:
        key = deletion.key
        self._metrics.writes.labels("delete", key.kind).inc()
        self._settled.pop(key, None)
        answer = None
        with contextlib.suppress(NotFoundError, ConflictError):
            answer = await self._api.delete(resource, key.namespace, key.name, uid=deletion.uid)
        if answer is not None and answer["metadata"].get("deletionTimestamp"):
            self._store.put_answer(resource, answer)
        else:
            self._store.discard(resource, key, deletion.uid)

    def _is_current(self, key: ObjectKey, live: Manifest, intent: Manifest) -> bool:
        # The server may spell a value in a way that `covers` does not know. What it answered to
        # this very intent is by definition no drift, until somebody writes the object again.
        fingerprint = _fingerprint(live, intent)
        if self._settled.get(key) == fingerprint:
            return covers(live["metadata"], intent["metadata"])
        if not is_current(live, intent):
            return False
        self._settled[key] = fingerprint
        return True

    async def _verify(self, deployment: Manifest) -> None:
        """Read the deployment once more before its first child is made.

        The watch may be behind. A child of a deployment that is gone would be collected as
        garbage, its end would wake the deployment's ghost, and so on for ever.
        """
        metadata = deployment["metadata"]
        try:
            fresh = await self._api.get(DEPLOYMENTS, metadata["namespace"], metadata["name"])
        except NotFoundError:
            self._store.discard(DEPLOYMENTS, object_key(deployment), metadata["uid"])
            raise DeploymentGoneError from None
        self._store.put_answer(DEPLOYMENTS, fresh)
        is_other = fresh["metadata"]["uid"] != metadata["uid"]
        if is_other or fresh["metadata"].get("deletionTimestamp"):
            raise DeploymentGoneError


def _fingerprint(live: Manifest, intent: Manifest) -> tuple[str, str]:
    """Return what stays the same for as long as an intent stays applied.

    Status writes count up the resource version, but not the generation.
    """
    metadata = live["metadata"]
    version = metadata.get("generation") or f"v{metadata.get('resourceVersion')}"
    spec_hash = (intent["metadata"].get("annotations") or {}).get(SPEC_HASH_ANNOTATION)
    return f"{metadata.get('uid')}/{version}", str(spec_hash)
