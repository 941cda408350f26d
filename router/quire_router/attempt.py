"""One request on one replica: accounting, and passing on what comes."""

import time
from collections.abc import Callable

from quire_engine.rpc import engine_pb2 as pb
from quire_router.decisions import Decision
from quire_router.failure import ENGINE_FAULTS, Verdict, verdict
from quire_router.load import Sent
from quire_router.replica import Replica
from quire_router.stream import GenerationStream
from quire_router.traces import NO_ATTEMPT

OnFailure = Callable[["Attempt", Verdict, pb.Error], None]


class Attempt:
    """Implements `session.Sink`. It ends once: done, failed, or cancelled."""

    def __init__(
        self,
        replica: Replica,
        stream: GenerationStream,
        decision: Decision,
        on_failure: OnFailure,
    ) -> None:
        self.replica = replica
        self.stream = stream
        self._decision = decision
        self.is_started = False
        self._on_failure = on_failure
        self._load = replica.load
        self._alias = 0
        self._trace = NO_ATTEMPT

    def send(self, *, num_cached: int) -> None:
        """Send the request, of whose prompt so many tokens are expected to be cached."""
        replica, stream = self.replica, self.stream
        stream.replica = replica.address
        stream.abort = self.cancel
        num_tokens = stream.num_prompt_tokens
        num_uncached = max(1, num_tokens - num_cached)
        num_blocks = -(-num_uncached // max(replica.info.block_size, 1))
        replica.breaker.sent()
        replica.counts.num_dispatched += 1
        replica.counts.num_prompt_tokens += num_tokens
        replica.counts.num_expected_cached_tokens += num_cached
        self._load.sent(id(self), Sent(num_uncached, num_blocks, time.monotonic()))
        self._trace = stream.trace.sent(self._decision, stream.request)
        self._alias = replica.submit(stream.request, self)

    def cancel(self) -> None:
        """Abort on the replica; nothing more comes."""
        self.replica.abort(self._alias)
        self.replica.breaker.ended()
        self._load.ended(id(self))
        self._decision.cancelled()
        self._trace.cancelled()
        self.replica.counts.num_cancelled += 1

    def evict(self, reason: str) -> None:
        """Take the request back from a replica that does not answer."""
        self.replica.abort(self._alias)
        self.on_lost(reason)

    def on_response(self, response: pb.GenerateResponse) -> None:
        is_last = response.HasField("usage")
        if is_last and _is_aborted(response):
            self.on_error(pb.Error(code=14, message="the engine aborted the request"))
            return
        self._trace.responded(response)
        if not self.is_started:
            self._start(response, is_last=is_last)
        if is_last:
            self._load.ended(id(self))
            self.replica.breaker.succeeded()
            self.replica.counts.num_completion_tokens += response.usage.num_completion_tokens
            self._decision.done(response.usage)
        self.stream.push(response, is_last=is_last)

    def _start(self, response: pb.GenerateResponse, *, is_last: bool) -> None:
        self.is_started = True
        self._load.started(id(self))
        counts = self.replica.counts
        counts.num_cached_tokens += response.prompt.num_cached_tokens
        self._decision.started(response.prompt.num_cached_tokens)
        # An answer that comes as a whole says itself when it began.
        elapsed_s = response.usage.time_to_first_token_s if is_last else None
        counts.first_token(elapsed_s or self._decision.first_response_s or 0.0)

    def on_error(self, error: pb.Error) -> None:
        meaning = verdict(error)
        if meaning in ENGINE_FAULTS:
            self.replica.breaker.failed(time.monotonic())
        else:
            self.replica.breaker.ended()
        self._fail(meaning, error)

    def on_lost(self, reason: str) -> None:
        # A broken connection is no matter for the breaker: reconnecting proves the replica anew.
        self.replica.breaker.ended()
        self._fail(Verdict.LOST, pb.Error(code=14, message=reason))

    def _fail(self, meaning: Verdict, error: pb.Error) -> None:
        self._load.ended(id(self))
        self.replica.counts.failed(meaning)
        self._decision.failed(meaning)
        self._trace.failed(meaning.value, error.code)
        self._on_failure(self, meaning, error)


def _is_aborted(response: pb.GenerateResponse) -> bool:
    """Whether the engine gave up, which only happens at the end of its own life."""
    return any(output.finish_reason == pb.FINISH_REASON_ABORT for output in response.outputs)
