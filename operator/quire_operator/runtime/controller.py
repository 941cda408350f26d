"""Notices become keys, keys become reconciles."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from quire_operator.errors import ConflictError, KubeError
from quire_operator.runtime.metrics import CONTROLLER, DeploymentKey, OperatorMetrics
from quire_operator.runtime.reconciler import Result
from quire_operator.runtime.resources import DEPLOYMENTS, NODES, PODS
from quire_operator.runtime.store import Change, Notice
from quire_operator.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)

Reconcile = Callable[[DeploymentKey], Awaitable[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long to let the dust settle before looking, in seconds."""

    settle_s: float = 0.5
    """After status of children and pods, which change in bursts: one look for the burst."""
    drift_s: float = 0.05
    """After somebody else changed or deleted a child."""
    nodes_s: float = 3.0
    """After a node changed, which concerns every deployment."""


def delay_after(notice: Notice, pace: Pace) -> float:
    """Return how long to wait after a change before its deployment is looked at."""
    if notice.resource is NODES:
        return pace.nodes_s
    if notice.is_own or notice.change is Change.STATUS or notice.resource is PODS:
        return pace.settle_s
    return 0.0 if notice.resource is DEPLOYMENTS else pace.drift_s


class Controller:
    """The workers of one process."""

    def __init__(
        self,
        queue: WorkQueue[DeploymentKey],
        reconcile: Reconcile,
        metrics: OperatorMetrics,
        *,
        num_workers: int,
        all_keys: Callable[[], list[DeploymentKey]],
        pace: Pace | None = None,
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._metrics = metrics
        self._num_workers = num_workers
        self._all_keys = all_keys
        self._pace = pace or Pace()
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.max_workers.set(num_workers)

    def on_notice(self, notice: Notice) -> None:
        """Queue what a change concerns."""
        delay_s = delay_after(notice, self._pace)
        if notice.key is not None:
            # What a person did comes before what follows from it elsewhere.
            is_urgent = notice.resource is DEPLOYMENTS and notice.change is not Change.STATUS
            self._queue.add(notice.key, delay_s=delay_s, is_urgent=is_urgent)
        else:
            self.add_all(delay_s=delay_s)

    def add_all(self, *, delay_s: float = 0.0) -> None:
        """Queue every deployment."""
        for key in self._all_keys():
            self._queue.add(key, delay_s=delay_s)

    async def run(self) -> None:
        """Work until cancelled; everything is looked at once to begin with."""
        self._is_stopping = False
        self.add_all()
        async with asyncio.TaskGroup() as group:
            for number in range(self._num_workers):
                group.create_task(self._work(), name=f"worker-{number}")

    def stop(self) -> None:
        """Let workers finish what they have and take nothing more."""
        self._is_stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Wait until no key is being worked on, or until the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def _work(self) -> None:
        while True:
            key, waited_s = await self._queue.take()
            self._idle.clear()
            try:
                if self._is_stopping:
                    return
                self._metrics.queue_duration.observe(waited_s)
                with self._metrics.active_workers.track_inprogress():
                    await self._work_on(key)
            finally:
                self._queue.done(key)
                if not self._queue.schedule.num_active:
                    self._idle.set()

    async def _work_on(self, key: DeploymentKey) -> None:
        started_at = time.perf_counter()
        result = await self._attempt(key)
        self._metrics.reconciles.labels(CONTROLLER, result).inc()
        elapsed_s = time.perf_counter() - started_at
        self._metrics.reconcile_time.observe(elapsed_s)
        self._metrics.work_duration.observe(elapsed_s)

    async def _attempt(self, key: DeploymentKey) -> str:
        """Reconcile once and queue what must follow; return the result for the metrics."""
        try:
            result = await self._reconcile(key)
        except ConflictError:
            # Not an error: the object changed while it was worked on.
            self._queue.add_failed(key)
            return "requeue"
        except KubeError as error:
            self._metrics.reconcile_errors.inc()
            delay_s = self._queue.add_failed(key)
            logger.warning(
                "reconcile failed namespace=%s name=%s retry_s=%.2f error=%s",
                *key, delay_s, error,
            )  # fmt: skip
            return "error"
        except Exception:
            self._metrics.reconcile_errors.inc()
            self._metrics.panics.inc()
            self._queue.add_failed(key)
            logger.exception("reconcile broke namespace=%s name=%s", *key)
            return "error"
        return self._follow_up(key, result)

    def _follow_up(self, key: DeploymentKey, result: Result) -> str:
        if result.error is not None:
            self._metrics.reconcile_errors.inc()
            if not result.error.is_retryable:
                self._metrics.terminal_errors.inc()
            delay_s = self._queue.add_failed(key)
            logger.warning(
                "object refused namespace=%s name=%s retry_s=%.2f error=%s",
                *key, delay_s, result.error,
            )  # fmt: skip
            return "error"
        self._queue.forget(key)
        if result.requeue_after_s is not None:
            self._queue.add(key, delay_s=result.requeue_after_s)
            return "requeue_after"
        return "success"
