"""Runs generations on replicas: chooses one, waits for one, tries another.

A request is begun anew on another replica as long as nothing of its answer was produced; so an
engine that dies never fails a request that it had not begun to answer. All of this happens in
callbacks of one event loop: a generation costs no task of its own.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from prometheus_client import CollectorRegistry

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.logs import request_fields
from quire_router.attempt import Attempt
from quire_router.candidates import snapshot
from quire_router.decisions import Decision, DecisionLog
from quire_router.discovery import parse_replicas
from quire_router.discovery_metrics import DiscoveryCollector
from quire_router.discovery_status import DiscoveryStatus
from quire_router.errors import NoReplicaError
from quire_router.failure import ENGINE_FAULTS, Verdict, api_error
from quire_router.generation import Reports, TokenizerFiles
from quire_router.policy import Candidate, choose_replica, least_requests
from quire_router.pool import Pool
from quire_router.pool_config import PoolConfig
from quire_router.pool_metrics import DispatchMetrics, ReplicaCollector
from quire_router.replica import Replica, ReplicaState, is_ready
from quire_router.replica_view import ReplicaView
from quire_router.reporting import Reporter
from quire_router.stream import GenerationStream
from quire_router.traces import NO_GENERATION, GenerationTrace
from quire_router.workers.publisher import Publisher
from quire_router.workers.share import WorkerShare

logger = logging.getLogger(__name__)

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class PoolDispatcher:
    """Implements `generation.Dispatcher` over the replicas that a configuration names."""

    def __init__(
        self,
        config: PoolConfig,
        registry: CollectorRegistry,
        *,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
        share: WorkerShare | None = None,
    ) -> None:
        """`environment` is where a pod is told of its API server; `share` ties workers together.

        Raises:
            ConfigError: a replica is named in a way that cannot be understood, or followed here.
        """
        self._config = config
        self._is_by_cost = config.routing_policy == "cost"
        discoveries = parse_replicas(config, environment)
        self._sources = [discovery.status for discovery in discoveries]
        open_account = share.open_account if share is not None else None
        self._pool = Pool(config, discoveries, self._on_state, open_account)
        self._metrics = DispatchMetrics(registry)
        self._collectors = (
            ReplicaCollector(self._views),
            DiscoveryCollector(self._discovery_statuses),
        )
        for collector in self._collectors:
            registry.register(collector)
        self._registry = registry
        self._parked: dict[GenerationStream, asyncio.TimerHandle] = {}
        self._decisions = DecisionLog(share.decision_numbers() if share is not None else None)
        self._reporter = Reporter(self._pool, self._decisions, self._parked)
        self._publisher: Publisher | None = None
        if share is not None:
            self._publisher = Publisher(
                share, self._pool, self._sources, self._decisions, self._parked
            )
        self._served: Replica | None = None
        self._is_closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to look for replicas. Returns at once, whether or not there are any."""
        await self._pool.start()
        self._tasks.append(asyncio.create_task(self._reporter.sample()))
        if self._publisher is not None:
            self._tasks.append(asyncio.create_task(self._publisher.run()))

    async def close(self) -> None:
        """Abort what is in flight and close every connection."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        for stream in list(self._parked):
            self._unpark(stream)
            stream.fail(NoReplicaError("the router is shutting down"))
        await self._pool.close()
        for collector in self._collectors:
            self._registry.unregister(collector)

    @property
    def is_synced(self) -> bool:
        """Whether every source has told which replicas there are, be it none."""
        if self._publisher is not None:
            return self._publisher.are_synced
        return self._pool.is_synced

    @property
    def is_ready(self) -> bool:
        """Whether a replica can take requests now."""
        if self._publisher is not None:
            return self._publisher.are_ready
        return any(map(is_ready, self._pool.replicas))

    @property
    def reports(self) -> Reports:
        """What there is to see of the replicas and of the last decisions."""
        return self._reporter if self._publisher is None else self._publisher.reports

    def models(self) -> Sequence[pb.ModelInfo]:
        """Return the models of the replicas that are ready now; one each."""
        infos = (replica.info for replica in self._pool.replicas if is_ready(replica))
        return list({info.served_model_names[0]: info for info in infos}.values())

    def served(self) -> pb.ModelInfo | None:
        """Return the model served, also while no replica is ready; None until one has been."""
        return self._served.info if self._served is not None else None

    def tokenizer(self) -> TokenizerFiles:
        """Return the tokenizer of `served()`.

        Raises:
            NoReplicaError: no replica has been ready yet.
        """
        if self._served is None or self._served.tokenizer is None:
            raise NoReplicaError
        return self._served.tokenizer

    def generate(
        self,
        request: pb.GenerateRequest,
        *,
        token_ids: Sequence[int],
        trace: GenerationTrace = NO_GENERATION,
    ) -> GenerationStream:
        """Start a generation; choosing, waiting and failing happen in `Generation.next`."""
        if token_ids and not request.prompt_token_ids:
            request.prompt_token_ids.extend(token_ids)
        stream = GenerationStream(request, token_ids, trace)
        if self._is_closed:
            stream.fail(NoReplicaError("the router is shutting down"))
        elif not self._place(stream):
            self._park(stream)
        return stream

    def _discovery_statuses(self) -> list[DiscoveryStatus]:
        return self._sources if self._publisher is None else self._publisher.sources()

    def _views(self) -> list[ReplicaView]:
        if self._publisher is not None:
            return self._publisher.replicas()
        return [ReplicaView.of(replica) for replica in self._pool.replicas]

    def _place(self, stream: GenerationStream) -> bool:
        """Send a generation to the best replica; False when none can take it now."""
        replicas = self._eligible(stream)
        if not replicas:
            return False
        if self._publisher is not None:
            self._publisher.listen()
        hashes = [_hashes(replica, stream) for replica in replicas]
        with self._metrics.deciding(replicas, is_by_cost=self._is_by_cost):
            cached = [
                replica.index.num_cached(known) * replica.info.block_size
                for replica, known in zip(replicas, hashes, strict=True)
            ]
            candidates = snapshot(replicas, cached)
            chosen = self._choose(candidates, stream.num_prompt_tokens)
        self._metrics.decided(candidates, candidates[chosen], stream.num_prompt_tokens)
        decision = self._decide(stream, candidates, chosen)
        self._send(stream, replicas[chosen], hashes[chosen], decision)
        return True

    def _eligible(self, stream: GenerationStream) -> list[Replica]:
        """Return the replicas that a generation may be sent to."""
        model = _model(self._served)
        ready = [
            replica
            for replica in self._pool.replicas
            if is_ready(replica)
            and _model(replica) == model
            and replica.incarnation not in stream.tried
        ]
        now = time.monotonic()
        # A breaker is advice: an engine that fails often is still better than none.
        return [replica for replica in ready if replica.breaker.allows(now)] or ready

    def _choose(self, candidates: list[Candidate], num_tokens: int) -> int:
        """Return the position of the best replica."""
        if self._is_by_cost:
            return candidates.index(choose_replica(candidates, num_tokens))
        return candidates.index(least_requests(candidates))

    def _decide(
        self, stream: GenerationStream, candidates: Sequence[Candidate], chosen: int
    ) -> Decision:
        return self._decisions.add(
            candidates,
            chosen,
            is_by_cost=self._is_by_cost,
            num_prompt_tokens=stream.num_prompt_tokens,
            num_attempts=len(stream.tried) + 1,
            waited_s=time.monotonic() - stream.created_at,
        )

    def _send(
        self,
        stream: GenerationStream,
        replica: Replica,
        hashes: Sequence[int],
        decision: Decision,
    ) -> None:
        replica.last_chosen = decision.number
        replica.index.speculate(hashes, time.monotonic())
        if self._publisher is not None:
            self._publisher.sent(replica, hashes)
        attempt = Attempt(replica, stream, decision, self._on_failure)
        attempt.send(num_cached=decision.chosen.cached_tokens)

    def _on_failure(self, attempt: Attempt, verdict: Verdict, error: pb.Error) -> None:
        """One replica failed a request: try another, wait for one, or give up.

        A generation that has begun would be resumed here, from its prompt and what it produced.
        """
        stream = attempt.stream
        _log_failure(attempt, verdict, error)
        stream.tried.add(attempt.replica.incarnation)
        if verdict is Verdict.DRAINING:
            attempt.replica.refuse_work()
        if not self._may_retry(stream, verdict):
            stream.fail(api_error(verdict, error.message, error.param))
            return
        self._metrics.retries.labels(verdict.value).inc()
        if self._place(stream):
            return
        if verdict in (Verdict.FULL, Verdict.FAULT):
            stream.fail(api_error(verdict, error.message, error.param))
        else:
            self._park(stream)

    def _may_retry(self, stream: GenerationStream, verdict: Verdict) -> bool:
        if stream.is_started or self._is_closed or verdict is Verdict.REFUSED:
            return False
        if verdict in ENGINE_FAULTS:
            # A request that brings down every engine that sees it must not see them all.
            stream.num_retries += 1
        return stream.num_retries <= self._config.max_request_retries

    def _park(self, stream: GenerationStream) -> None:
        """Keep a generation until a replica is ready, for a while."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._config.replica_wait_s, self._give_up, stream)
        stream.replica = ""
        self._parked[stream] = timer
        stream.abort = partial(self._unpark, stream)
        self._metrics.parked.set(len(self._parked))

    def _unpark(self, stream: GenerationStream) -> None:
        if (timer := self._parked.pop(stream, None)) is not None:
            timer.cancel()
            self._metrics.parked.set(len(self._parked))

    def _give_up(self, stream: GenerationStream) -> None:
        self._unpark(stream)
        stream.trace.given_up()
        stream.fail(NoReplicaError())

    def _on_state(self, replica: Replica) -> None:
        if self._publisher is not None:
            self._publisher.publish_soon()
        if replica.state is ReplicaState.READY:
            self._adopt(replica)
            self._place_parked(replica)
        elif replica.state is ReplicaState.UNRESPONSIVE:
            self._take_back(replica)

    def _place_parked(self, replica: Replica) -> None:
        for stream in list(self._parked):
            # It is ready again: that it failed this request before does not count any more.
            stream.tried.discard(replica.incarnation)
            if self._place(stream):
                self._unpark(stream)

    def _take_back(self, replica: Replica) -> None:
        """Let others do what a silent replica has not begun to answer, if there are any."""
        for sink in replica.sinks():
            if isinstance(sink, Attempt) and not sink.is_started and self._eligible(sink.stream):
                sink.evict("the engine does not respond")

    def _adopt(self, replica: Replica) -> None:
        """Serve the model of the first replica, for as long as any replica has it."""
        if self._served is None or not any(
            is_ready(other) and _model(other) == _model(self._served)
            for other in self._pool.replicas
        ):
            self._served = replica
        if _model(replica) != _model(self._served):
            logger.error(
                "replica ignored, it serves another model replica=%s model=%s served=%s",
                replica.address,
                _model(replica),
                _model(self._served),
            )


def _log_failure(attempt: Attempt, verdict: Verdict, error: pb.Error) -> None:
    # What an engine says of a refusal may quote the prompt; of its own failures it does not.
    is_fault = verdict in ENGINE_FAULTS
    request = attempt.stream.request
    logger.log(
        logging.WARNING if is_fault else logging.DEBUG,
        "attempt failed replica=%s reason=%s error=%s",
        attempt.replica.address,
        verdict.value,
        error.message if is_fault else error.code,
        extra=request_fields(request.client_request_id, request.traceparent),
    )


def _model(replica: Replica | None) -> str:
    return replica.info.served_model_names[0] if replica is not None else ""


def _hashes(replica: Replica, stream: GenerationStream) -> Sequence[int]:
    """Return the prompt's block hashes as this replica computes them."""
    request = stream.request
    if not replica.info.prefix_caching:
        return ()
    return stream.hashes(replica.info.block_size, replica.prefix_seed(request.cache_salt))
