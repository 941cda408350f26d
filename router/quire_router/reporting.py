"""Reports of the replicas of a pool, and of the decisions about them."""

import asyncio
import time
from collections import deque
from collections.abc import Sized
from dataclasses import dataclass

from quire_router.decisions import Decision, DecisionLog
from quire_router.pool import Pool
from quire_router.replica import Replica
from quire_router.replica_reports import CandidateReport, History, ReplicaReport, RequestReport

SAMPLE_S = 1.0
NUM_SAMPLES = 180
MAX_CANDIDATES = 4
"""Candidates that a request lists: with a hundred replicas the rest explain nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One replica at one moment of the last minutes."""

    tokens_per_s: float
    waiting: int
    kv_usage: float


class Reporter:
    """Reports about the replicas of a pool; `sample` must be running for rates and history."""

    def __init__(self, pool: Pool, decisions: DecisionLog, parked: Sized = ()) -> None:
        """`parked` are the requests that wait for a replica."""
        self._pool = pool
        self._parked = parked
        self._decisions = decisions
        self._trails: dict[str, Trail] = {}

    @property
    def revision(self) -> int:
        """Grows whenever a request's report changes."""
        return self._decisions.revision

    @property
    def num_parked(self) -> int:
        """Requests that wait because no replica can take them."""
        return len(self._parked)

    async def sample(self) -> None:
        """Follow the replicas until cancelled."""
        while True:
            self._follow(time.monotonic())
            await asyncio.sleep(SAMPLE_S)

    def replicas(self, *, with_history: bool = False) -> list[ReplicaReport]:
        """Return what is known of every replica, by address."""
        replicas = sorted(self._pool.replicas, key=lambda replica: replica.address)
        return [
            _report(replica, self._trails.get(replica.address) or Trail(), with_history)
            for replica in replicas
        ]

    def requests(self, since: int = 0) -> list[RequestReport]:
        """Return the last requests that are new or have changed since a revision, oldest first."""
        return [_request(decision) for decision in self._decisions.since(since)]

    def _follow(self, now: float) -> None:
        trails = {}
        for replica in self._pool.replicas:
            trail = trails[replica.address] = self._trails.get(replica.address) or Trail()
            trail.add(replica, now)
        self._trails = trails


class Trail:
    """The last samples of one replica."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self._epoch = 0
        self._num_tokens = 0
        self._at = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._samples[-1].tokens_per_s if self._samples else 0.0

    def add(self, replica: Replica, now: float) -> None:
        load = replica.load.report
        self._samples.append(
            Sample(
                tokens_per_s=self._rate(load.epoch, load.num_generated_tokens, now),
                waiting=load.num_waiting,
                kv_usage=_kv_usage(replica),
            )
        )

    def history(self) -> History:
        return History(
            interval_s=SAMPLE_S,
            tokens_per_s=[sample.tokens_per_s for sample in self._samples],
            waiting=[sample.waiting for sample in self._samples],
            kv_usage=[sample.kv_usage for sample in self._samples],
        )

    def _rate(self, epoch: int, num_tokens: int, now: float) -> float:
        """Return the tokens per second since the last sample."""
        if not epoch:
            return 0.0  # not connected: its count goes on from where it was
        rate = 0.0
        # Another process counts from zero, and what it did before we saw it took unknown time.
        if epoch == self._epoch:
            rate = round((num_tokens - self._num_tokens) / max(now - self._at, 1e-3), 1)
        self._epoch, self._num_tokens, self._at = epoch, num_tokens, now
        return rate


def _kv_usage(replica: Replica) -> float:
    load = replica.load.report
    return round(load.num_used_blocks / (load.num_total_blocks or 1), 4)


def _report(replica: Replica, trail: Trail, with_history: bool) -> ReplicaReport:
    load, counts, index = replica.load.report, replica.counts, replica.index
    names = replica.info.served_model_names
    age_s = time.monotonic() - index.updated_at if index.updated_at else None
    failures = {verdict.value: num for verdict, num in counts.num_failures.items() if num}
    return ReplicaReport(
        replica=replica.address,
        state=replica.state.value,
        retired=replica.is_retired,
        breaker="open" if replica.breaker.is_open else "closed",
        index_mode=index.mode.value,
        index_blocks=index.num_known,
        index_age_s=_rounded(age_s),
        model=names[0] if names else "",
        device=replica.info.device,
        running=load.num_running,
        waiting=load.num_waiting,
        in_flight=replica.load.num_own,
        queued_tokens=replica.load.queued_tokens,
        kv_usage=_kv_usage(replica),
        kv_blocks=load.num_total_blocks,
        tokens_per_s=trail.tokens_per_s,
        prefill_tokens_per_s=round(load.prefill_tokens_per_s, 1),
        decode_step_s=round(load.decode_step_s, 6),
        requests=counts.num_dispatched,
        prompt_tokens=counts.num_prompt_tokens,
        cached_tokens=counts.num_cached_tokens,
        expected_cached_tokens=counts.num_expected_cached_tokens,
        preemptions=load.num_preemptions,
        failures=failures,
        connections=counts.num_connections,
        history=trail.history() if with_history else None,
    )


def _request(decision: Decision) -> RequestReport:
    return RequestReport(
        number=decision.number,
        at=round(decision.at, 3),
        replica=decision.chosen.name,
        reason=decision.reason.value,
        attempt=decision.num_attempts,
        waited_s=round(decision.waited_s, 4),
        prompt_tokens=decision.num_prompt_tokens,
        expected_cached_tokens=decision.chosen.cached_tokens,
        cached_tokens=decision.num_cached_tokens,
        completion_tokens=decision.num_completion_tokens,
        first_response_s=_rounded(decision.first_response_s),
        total_s=_rounded(decision.total_s),
        outcome=decision.outcome,
        num_candidates=len(decision.candidates),
        candidates=_candidates(decision),
    )


def _candidates(decision: Decision) -> list[CandidateReport]:
    by_cost = sorted(
        zip(decision.costs, decision.candidates, strict=True), key=lambda pair: pair[0]
    )
    shown = by_cost[:MAX_CANDIDATES]
    if not any(item is decision.chosen for _, item in shown):
        shown[-1:] = [pair for pair in by_cost if pair[1] is decision.chosen]
    return [
        CandidateReport(
            replica=item.name,
            cost_s=round(cost, 6),
            cached_tokens=item.cached_tokens,
            queued_tokens=int(item.queued_tokens),
            active=item.num_active,
        )
        for cost, item in shown
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
