"""One key: what there is, what should be, and the writes between the two."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from quire_operator.errors import ConflictError, KubeError, NotFoundError
from quire_operator.plan import (
    Event,
    Manifest,
    ObjectKey,
    Observed,
    OperatorSettings,
    Plan,
    object_key,
    plan,
    referenced_objects,
)
from quire_operator.runtime.applier import Applier, DeploymentGoneError, Outcome
from quire_operator.runtime.discovery import ServerApis
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.metrics import DeploymentKey, OperatorMetrics
from quire_operator.runtime.recorder import EventRecorder
from quire_operator.runtime.references import References
from quire_operator.runtime.report_pace import ReportPace, num_starting
from quire_operator.runtime.reports import is_news, status_patch, with_apply_errors
from quire_operator.runtime.resources import DEPLOYMENTS
from quire_operator.runtime.store import Store

logger = logging.getLogger(__name__)

Planner = Callable[[Manifest, Observed, OperatorSettings], Plan]

_ABSENT_RECHECK_S = 10.0
"""How soon to look again for a Secret or claim that a spec names and nobody has made yet."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a reconcile ended, when it did not fail."""

    requeue_after_s: float | None = None
    error: KubeError | None = None
    """Why some object could not be applied; the rest is done."""


class Reconciler:
    """Brings one deployment at a time to what its spec says. Safe to run at any moment."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        applier: Applier,
        recorder: EventRecorder,
        references: References,
        metrics: OperatorMetrics,
        settings: OperatorSettings,
        *,
        apis: Callable[[], ServerApis],
        now: Callable[[], datetime],
        planner: Planner = plan,
        progress_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._store = store
        self._applier = applier
        self._recorder = recorder
        self._references = references
        self._metrics = metrics
        self._settings = settings
        self._apis = apis
        self._now = now
        self._planner = planner
        self._pace = ReportPace(
            progress_s, num_starting=lambda: num_starting(store.deployments.values())
        )
        self._clock = clock
        self._named: dict[DeploymentKey, tuple[str, tuple[ObjectKey, ...]]] = {}

    async def reconcile(self, key: DeploymentKey) -> Result:
        """Plan for a key and carry the plan out.

        Raises:
            KubeError: another try may succeed.
        """
        deployment = self._store.deployments.get(key)
        if deployment is None:
            self._applier.forget(self._store.children(key))
            self._named.pop(key, None)
            self._pace.forget(key)
            return Result()
        if deployment["metadata"].get("deletionTimestamp"):
            # Owner references do the rest; writing now would only race the collector.
            return Result()
        try:
            return await self._carry_out(key, deployment)
        except DeploymentGoneError:
            logger.info("deployment gone namespace=%s name=%s", *key)
            return Result()

    async def _carry_out(self, key: DeploymentKey, deployment: Manifest) -> Result:
        observed = await self._observe(key, deployment)
        wanted = self._planner(deployment, observed, self._settings)
        outcome = await self._applier.apply(deployment, wanted.objects, observed.children)
        if not outcome.errors:
            outcome.num_writes += await self._applier.delete(wanted.deletions)
        self._tell(deployment, wanted.events)
        self._log(key, outcome)
        status = with_apply_errors(wanted.status, deployment, outcome.errors, observed.now)
        wait_s = self._wait_before_report(key, deployment, status, outcome)
        if wait_s is None:
            await self._report(key, deployment, status)
            self._pace.note_told(key)
            self._tell(deployment, wanted.news)
        delays = [wait_s, wanted.requeue_after_s]
        if not all(observed.referenced.values()):
            delays.append(_ABSENT_RECHECK_S)
        error = next(iter(outcome.errors.values()), None)
        return Result(min((delay for delay in delays if delay is not None), default=None), error)

    async def _observe(self, key: DeploymentKey, deployment: Manifest) -> Observed:
        referenced = await self._references.look_up(self._referenced(key, deployment))
        apis = self._apis()
        return Observed(
            children=self._store.children(key),
            pods=self._store.pods(key),
            nodes=self._store.nodes,
            apis=apis.names,
            now=self._now(),
            referenced=referenced,
            server_version=apis.version,
        )

    def _referenced(self, key: DeploymentKey, deployment: Manifest) -> tuple[ObjectKey, ...]:
        metadata = deployment["metadata"]
        version = f"{metadata['uid']}/{metadata.get('generation')}"
        known = self._named.get(key)
        if known is None or known[0] != version:
            self._named[key] = known = version, referenced_objects(deployment)
        return known[1]

    def _wait_before_report(
        self, key: DeploymentKey, deployment: Manifest, status: Manifest, outcome: Outcome
    ) -> float | None:
        """Return how long a report should be put off; None: it should not."""
        live = deployment.get("status") or {}
        generation = deployment["metadata"].get("generation")
        if live.get("observedGeneration") != generation:
            is_made = outcome.num_writes and not outcome.errors
            return self._pace.wait_for_first_look(key, generation) if is_made else None
        if is_news(live, status) or not status_patch(live, status):
            return None
        return self._pace.wait_with_progress(key, self._clock())

    def _tell(self, deployment: Manifest, events: tuple[Event, ...]) -> None:
        for event in events:
            self._recorder.post(deployment, event)

    async def _report(self, key: DeploymentKey, deployment: Manifest, status: Manifest) -> None:
        patch = status_patch(deployment.get("status") or {}, status)
        if not patch:
            return
        self._pace.note_reported(key, self._clock())
        metadata = deployment["metadata"]
        # The version makes the server refuse a report about a spec that is not the latest.
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        self._metrics.writes.labels("status", DEPLOYMENTS.kind).inc()
        try:
            answer = await self._api.patch_status(
                DEPLOYMENTS, metadata["namespace"], metadata["name"], body
            )
        except NotFoundError:
            self._store.discard(DEPLOYMENTS, object_key(deployment), metadata["uid"])
            raise DeploymentGoneError from None
        except ConflictError:
            await self._refresh(deployment)
            raise
        self._store.put_answer(DEPLOYMENTS, answer)

    async def _refresh(self, deployment: Manifest) -> None:
        metadata = deployment["metadata"]
        try:
            fresh = await self._api.get(DEPLOYMENTS, metadata["namespace"], metadata["name"])
        except NotFoundError:
            self._store.discard(DEPLOYMENTS, object_key(deployment), metadata["uid"])
            raise DeploymentGoneError from None
        self._store.put_answer(DEPLOYMENTS, fresh)

    def _log(self, key: DeploymentKey, outcome: Outcome) -> None:
        if outcome.num_writes or outcome.errors:
            logger.info(
                "deployment reconciled namespace=%s name=%s num_writes=%d num_refused=%d",
                *key, outcome.num_writes, len(outcome.errors),
            )  # fmt: skip
