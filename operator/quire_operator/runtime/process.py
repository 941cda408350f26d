"""The operator process: everything is made here, and every task is started here."""

import asyncio
import contextlib
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from quire_operator.config import RuntimeConfig
from quire_operator.plan import DEPLOYMENT_LABEL, FIELD_MANAGER, Manifest, OperatorSettings, plan
from quire_operator.runtime.applier import Applier
from quire_operator.runtime.audit import Audit
from quire_operator.runtime.controller import Controller, Pace
from quire_operator.runtime.discovery import ServerApis
from quire_operator.runtime.election import Elector, LeaseLock
from quire_operator.runtime.front import Front, FrontConfig
from quire_operator.runtime.health import Health, limit
from quire_operator.runtime.informers import Informers
from quire_operator.runtime.kube import KubeApi, load_configuration
from quire_operator.runtime.metrics import DeploymentKey, OperatorMetrics
from quire_operator.runtime.reconciler import Planner, Reconciler
from quire_operator.runtime.recorder import EventRecorder
from quire_operator.runtime.references import References
from quire_operator.runtime.resources import DEPLOYMENTS
from quire_operator.runtime.store import Notice, Store
from quire_operator.runtime.web import WebServer
from quire_operator.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)

_AFTER_RESTART_S = 15.0
"""When to audit after kopf began again: by then it has listed everything."""


async def run_operator(
    config: RuntimeConfig, settings: OperatorSettings, *, planner: Planner = plan
) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        ConfigError: the process cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    configuration = await load_configuration(
        config.kubeconfig, max_connections=2 * config.num_workers + 64
    )
    api = KubeApi(configuration, OperatorMetrics(), field_manager=FIELD_MANAGER)
    try:
        await Process(config, settings, api, planner).run(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Process:
    """The parts of one operator process and how they hang together."""

    def __init__(
        self, config: RuntimeConfig, settings: OperatorSettings, api: KubeApi, planner: Planner
    ) -> None:
        self.config = config
        self.api = api
        self.metrics = api.metrics
        self.is_leader = False
        self.health = Health()
        self.queue: WorkQueue[DeploymentKey] = WorkQueue()
        self.store = Store(self._on_notice)
        self.informers = Informers(
            api,
            self.store,
            self.metrics,
            namespaces=config.watch_namespaces,
            selector=DEPLOYMENT_LABEL,
            node_selector=config.node_selector if config.watch_nodes else None,
            on_new_apis=self._on_new_apis,
        )
        self.recorder = EventRecorder(api, self.metrics, instance=config.identity, now=_now)
        self.audit = Audit(
            api, self.store, namespaces=config.watch_namespaces, on_missed=self._on_missed
        )
        self.front = Front(
            FrontConfig(configuration=api.configuration, namespaces=config.watch_namespaces),
            self._on_deployment,
            self._on_front_restart,
        )
        self.controller = Controller(
            self.queue,
            self._reconciler(settings, planner).reconcile,
            self.metrics,
            num_workers=config.num_workers,
            all_keys=lambda: list(self.store.deployments),
            pace=Pace(settle_s=config.settle_s),
        )
        self._observe_itself()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then let go of everything in order."""
        async with self._serving(), asyncio.TaskGroup() as group:
            lock = self._lock()
            tasks = [
                group.create_task(self.informers.run(), name="informers"),
                group.create_task(self.recorder.run(), name="recorder"),
                group.create_task(self._watch_deployments(), name="deployments"),
                group.create_task(self._resync(), name="resync"),
                group.create_task(self._work(lock), name="work"),
            ]
            await stop.wait()
            logger.info("stopping num_active=%d", self.queue.schedule.num_active)
            self.controller.stop()
            await self.controller.drain(self.config.shutdown_s)
            for task in tasks:
                task.cancel()
            # Not before the workers are gone: the next leader starts at once.
            await asyncio.wait(tasks)
            if lock is not None:
                await lock.release()

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        web = WebServer(
            self.metrics,
            self.health,
            metrics_address=self.config.metrics_address,
            health_address=self.config.health_address,
            on_scrape=self._on_scrape,
        )
        try:
            await web.start()
            yield
        finally:
            await self.front.stop()
            await web.stop()
            await self.api.close()

    def _reconciler(self, settings: OperatorSettings, planner: Planner) -> Reconciler:
        return Reconciler(
            self.api,
            self.store,
            Applier(self.api, self.store, self.metrics, self.informers.resources),
            self.recorder,
            References(self.api),
            self.metrics,
            settings,
            apis=self._apis,
            now=_now,
            planner=planner,
            progress_s=self.config.progress_s,
        )

    def _lock(self) -> LeaseLock | None:
        if not self.config.leader_election:
            return None
        # Two processes of one host must not take each other for themselves.
        identity = f"{self.config.identity}_{uuid.uuid4().hex[:8]}"
        return LeaseLock(
            self.api,
            self.config.lease_name,
            self.config.namespace,
            identity,
            timeout_s=self.config.renew_deadline_s / 2,
        )

    async def _work(self, lock: LeaseLock | None) -> None:
        if lock is None:
            self._on_leading(True)
            await self._lead()
            return
        elector = Elector(lock, self.config.election_times(), self._lead, self._on_leading)
        await elector.run()

    async def _lead(self) -> None:
        await self.informers.synced.wait()
        await self.controller.run()

    async def _watch_deployments(self) -> None:
        await self.informers.crd_found.wait()
        self.front.start()
        await self.audit.run(self.config.resync_s)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.config.resync_s)
            self.controller.add_all()

    def _on_notice(self, notice: Notice) -> None:
        self.controller.on_notice(notice)

    def _on_deployment(self, type_: str | None, manifest: Manifest) -> None:
        self.metrics.watch_events.labels(DEPLOYMENTS.kind).inc()
        if type_ == "DELETED":
            self.store.remove(DEPLOYMENTS, manifest)
        else:
            self.store.put(DEPLOYMENTS, manifest)

    def _on_new_apis(self) -> None:
        self.controller.add_all()

    def _on_missed(self) -> None:
        self.front.restart()

    def _on_front_restart(self) -> None:
        self.metrics.front_restarts.inc()
        self.metrics.relists.labels(DEPLOYMENTS.kind, "restart").inc()
        asyncio.get_running_loop().call_later(_AFTER_RESTART_S, self.audit.request)

    def _on_leading(self, is_leader: bool) -> None:
        self.is_leader = is_leader
        self.metrics.is_leader.set(is_leader)
        self.metrics.leader.labels(self.config.lease_name).set(is_leader)

    def _apis(self) -> ServerApis:
        return self.informers.apis

    def _reported(self) -> Mapping[DeploymentKey, Manifest]:
        """Return the deployments that this replica reports on: of two replicas, one does."""
        return self.store.deployments if self.is_leader else {}

    def _on_scrape(self) -> None:
        for reflector in self.informers.reflectors:
            self.metrics.watch_silence.labels(reflector.name).set(reflector.silent_for_s)
        for kind, size in self.store.sizes().items():
            self.metrics.objects.labels(kind).set(size)

    def _observe_itself(self) -> None:
        self.metrics.watch_queue(self.queue.schedule, self.queue.clock)
        self.metrics.watch_deployments(self._reported)
        stuck_s = self.config.stuck_s
        require = self.health.require_alive
        require("watch", limit("a watch did nothing", self._longest_stuck_s, stuck_s))
        require("kopf", limit("kopf's event loop did nothing", self._front_stuck_s, stuck_s))
        require("kopf-watch", self.audit.problem)
        require("queue", limit("a key was ready", self._oldest_ready_s, stuck_s))
        require("workers", limit("a worker had one key", self._longest_active_s, stuck_s))
        self.health.require_ready("caches", self.informers.unsynced)

    def _longest_stuck_s(self) -> float:
        return self.informers.longest_stuck_s

    def _front_stuck_s(self) -> float:
        return self.front.stuck_for_s if self.informers.has_crd else 0.0

    def _oldest_ready_s(self) -> float:
        # Keys of a replica that does not lead wait for its turn.
        return self.queue.schedule.oldest_ready_s(now=self.queue.clock()) if self.is_leader else 0.0

    def _longest_active_s(self) -> float:
        return self.queue.schedule.longest_active_s(now=self.queue.clock())


def _now() -> datetime:
    return datetime.now(UTC)
