"""Joins a core and the frontend's processor: requests in, what each step brings out.

One task takes in steps. For each it makes a single pass over the outputs: processor, then the sinks
of the requests, then one flush per sink. Nothing here costs a task or a queue per request or token.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from quire_engine.core.messages import (
    CoreReady,
    CoreStats,
    FinishReason,
    NewSequence,
    StepOutputs,
)
from quire_engine.errors import (
    DrainingError,
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
    QuireError,
)
from quire_engine.frontend.deltas import RequestDelta
from quire_engine.frontend.processor import Processor
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.convert import load_message
from quire_engine.server.health import Vitals
from quire_engine.server.kv_mirror import KvMirror
from quire_engine.server.metrics import EngineMetrics, FinishedRequest
from quire_engine.server.origin import NO_ORIGIN, Origin
from quire_engine.server.request_record import RequestRecord
from quire_engine.server.request_tracer import EndedRequest, RequestTracer

logger = logging.getLogger(__name__)

REFUSALS: dict[type[QuireError], str] = {
    InvalidRequestError: "invalid",
    QueueFullError: "queue_full",
    DrainingError: "draining",
}
"""Values of the metric's label `reason`."""


class Core(Protocol):
    """What computes: a core process (`CoreClient`) or, in tests, a thread."""

    @property
    def ready(self) -> CoreReady: ...
    @property
    def error(self) -> EngineDeadError | None: ...
    @property
    def last_progress_s(self) -> float: ...
    @property
    def is_stepping(self) -> bool: ...
    def send(self, *sequences: NewSequence) -> None: ...
    def abort(self, seq_ids: Sequence[int]) -> None: ...
    async def reset_prefix_cache(self) -> None: ...
    def outputs(self) -> AsyncIterator[StepOutputs]: ...
    async def close(self, *, timeout_s: float = ...) -> None: ...


class Sink(Protocol):
    """Where the outputs of requests go."""

    def deliver(self, delta: RequestDelta) -> None:
        """Take what a step, still being taken in, brought to one request."""
        ...

    def flush(self, load: pb.Load) -> None:
        """Send what was delivered: the step is over."""
        ...


class AsyncEngine:
    """One engine as the event loop sees it."""

    def __init__(
        self,
        core: Core,
        processor: Processor,
        mirror: KvMirror,
        metrics: EngineMetrics,
        *,
        tracer: RequestTracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mirror = mirror
        self._tracer = tracer
        self._core = core
        self._processor = processor
        self._metrics = metrics
        self._clock = clock
        self._requests: dict[str, tuple[Sink, RequestRecord]] = {}
        self._stats = CoreStats(num_total_blocks=core.ready.num_blocks)
        self._is_draining = False
        self._failure: EngineDeadError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._num_load_changes = 0
        self._load: pb.Load | None = None

    @property
    def num_in_flight(self) -> int:
        return len(self._requests)

    @property
    def error(self) -> EngineDeadError | None:
        """Why nothing more will be generated; None while all is well."""
        return self._core.error or self._failure

    @property
    def vitals(self) -> Vitals:
        return Vitals(
            is_ready=True,
            is_draining=self._is_draining,
            is_dead=self.error is not None,
            is_working=self._core.is_stepping,
            last_progress_s=self._core.last_progress_s,
        )

    @property
    def default_params(self) -> Mapping[str, Any]:
        """The model's own defaults of SamplingParams."""
        return self._processor.defaults

    def load(self) -> pb.Load:
        """Return the load as of the last step; one message object per step, not to be changed."""
        if self._load is None:
            self._num_load_changes += 1
            self._load = load_message(
                self._stats,
                epoch=self.mirror.epoch,
                seq=self._num_load_changes,
                draining=self._is_draining,
            )
        return self._load

    async def run(self) -> None:
        """Take in steps until the core is closed.

        Raises:
            EngineDeadError: the core died; every request in flight was told.
        """
        try:
            async for step in self._core.outputs():
                self._take(step)
        except EngineDeadError as error:
            self._fail_all(error)
            raise
        except Exception as error:  # a bug: requests would wait for ever for what got lost
            self._failure = EngineDeadError(f"the engine failed: {type(error).__name__}: {error}")
            logger.exception("step lost num_requests=%d", len(self._requests))
            self._fail_all(self._failure)
            raise self._failure from error

    def submit(
        self,
        request_id: str,
        prompt: str | list[int],
        params: SamplingParams,
        sink: Sink,
        *,
        priority: int = 0,
        cache_salt: str = "",
        origin: Origin = NO_ORIGIN,
    ) -> None:
        """Begin to generate; outputs go to `sink`, refusals by the core too.

        Raises:
            QuireError: the request is refused here.
        """
        self._admit()
        now = self._clock()
        sequences = self._processor.add(
            request_id, prompt, params, arrival_s=now, priority=priority, cache_salt=cache_salt
        )
        try:
            self._core.send(*sequences)
        except EngineDeadError:
            self._processor.abort([request_id])
            raise
        record = RequestRecord(params, self._processor.stats(request_id), origin)
        self._requests[request_id] = sink, record
        self._idle.clear()

    def refuse(self, error: QuireError, origin: Origin) -> None:
        """Note a request that was refused before it was taken in."""
        self._count_refusal(error)
        _log_failure(error, origin)
        if self._tracer is not None:
            self._tracer.refused(error, origin)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests; nothing more is delivered for them. Unknown ids are ignored."""
        known = [request_id for request_id in request_ids if request_id in self._requests]
        if not known:
            return
        for request_id in known:
            _, record = self._requests.pop(request_id)
            now = self._clock()
            self._ended(record, record.ended(FinishReason.ABORT, now), now)
        self._core.abort(self._processor.abort(known))
        self._note_idle()

    async def tokenize(self, prompt: str) -> list[int]:
        """Tokenize off the event loop: a long text takes a while."""
        self._admit()
        return await asyncio.to_thread(self._processor.tokenize, prompt)

    async def drain(self, timeout_s: float | None) -> int:
        """Refuse new requests and wait for those in flight; return how many were aborted.

        None waits for as long as it takes.
        """
        self._is_draining = True
        self._load = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return self.cancel_all()
        return 0

    def cancel_all(self) -> int:
        """Abort everything in flight and tell its clients; return how much it was."""
        error = EngineDeadError("the engine shut down before the request had finished")
        self._core.abort(self._processor.abort(list(self._requests)))
        return self._fail_all(error)

    async def reset_prefix_cache(self) -> None:
        await self._core.reset_prefix_cache()

    def _admit(self) -> None:
        if self.error is not None:
            raise self.error
        if self._is_draining:
            raise DrainingError

    def _take(self, step: StepOutputs) -> None:
        self._stats = step.stats
        self._load = None
        self._metrics.on_step(step.stats)
        if step.kv_events is not None:
            self.mirror.apply(step.kv_events)
        if not step.outputs:
            return
        processed = self._processor.process(step)
        if processed.abort_seq_ids:
            self._core.abort(processed.abort_seq_ids)
        self._deliver(processed.deltas)

    def _deliver(self, deltas: list[RequestDelta]) -> None:
        now = self._clock()
        touched: dict[Sink, None] = {}  # a set that keeps the order
        for delta in deltas:
            entry = self._requests.get(delta.request_id)
            if entry is None:
                continue  # aborted while the step ran
            sink, record = entry
            record.observe(delta, now, self._metrics)
            if delta.finished:
                self._finish(delta, record, now)
            sink.deliver(delta)
            touched[sink] = None
        load = self.load()
        for sink in touched:
            sink.flush(load)
        self._note_idle()

    def _finish(self, delta: RequestDelta, record: RequestRecord, now: float) -> None:
        del self._requests[delta.request_id]
        if delta.error is not None:
            self._count_refusal(delta.error)
        self._ended(record, record.finished(delta.usage, now, self._metrics), now, delta.error)

    def _fail_all(self, error: QuireError) -> int:
        requests, self._requests = self._requests, {}
        self._load = None
        now, load = self._clock(), self.load()
        for request_id, (sink, record) in requests.items():
            self._ended(record, record.ended(FinishReason.ERROR, now), now, error)
            sink.deliver(RequestDelta(request_id=request_id, error=error))
            sink.flush(load)
        self._note_idle()
        return len(requests)

    def _ended(
        self,
        record: RequestRecord,
        finished: FinishedRequest,
        now: float,
        error: QuireError | None = None,
    ) -> None:
        self._metrics.on_finished(finished)
        if error is not None:
            _log_failure(error, record.origin)
        elif logger.isEnabledFor(logging.DEBUG):
            _log_end(finished, record.origin)
        if self._tracer is not None:
            self._tracer.ended(
                EndedRequest(
                    origin=record.origin,
                    params=record.params,
                    stats=record.stats,
                    finished=finished,
                    ended_at=now,
                    error=error,
                )
            )

    def _count_refusal(self, error: QuireError) -> None:
        for type_, reason in REFUSALS.items():
            if isinstance(error, type_):
                self._metrics.on_rejected(reason)

    def _note_idle(self) -> None:
        if not self._requests:
            self._idle.set()


def _log_failure(error: QuireError, origin: Origin) -> None:
    if isinstance(error, tuple(REFUSALS)):
        # The caller is told why. A message about a mistake may quote the prompt: it is not logged.
        logger.debug("request refused error=%s", type(error).__name__, extra=origin.log_fields)
    else:
        logger.warning("request failed reason=%s", error, extra=origin.log_fields)


def _log_end(finished: FinishedRequest, origin: Origin) -> None:
    logger.debug(
        "request ended reason=%s num_generation_tokens=%d latency_s=%.3f",
        finished.finish_reason,
        finished.num_generation_tokens,
        finished.latency_s,
        extra=origin.log_fields,
    )
