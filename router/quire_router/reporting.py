"""Reports of the replicas of a pool, and of the decisions about them."""

import asyncio
import time
from collections.abc import Sized

from quire_router.decisions import Decision, DecisionLog
from quire_router.pool import Pool
from quire_router.replica_account import SAMPLE_S, kv_usage
from quire_router.replica_reports import CandidateReport, ReplicaReport, RequestReport
from quire_router.replica_view import ReplicaView

MAX_CANDIDATES = 4
"""Candidates that a request lists: with a hundred replicas the rest explain nothing."""


class Reporter:
    """Reports about the replicas of a pool; `sample` must be running for rates and history."""

    def __init__(self, pool: Pool, decisions: DecisionLog, parked: Sized = ()) -> None:
        """`parked` are the requests that wait for a replica."""
        self._pool = pool
        self._parked = parked
        self._decisions = decisions

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
        return [report(ReplicaView.of(replica), with_history=with_history) for replica in replicas]

    def requests(self, since: int = 0) -> list[RequestReport]:
        """Return the last requests that are new or have changed since a revision, oldest first."""
        return [request_report(decision) for decision in self._decisions.since(since)]

    def _follow(self, now: float) -> None:
        for replica in self._pool.replicas:
            replica.account.trail.add(replica.load.report, now)


def report(view: ReplicaView, *, with_history: bool) -> ReplicaReport:
    """Return what clients are told of a replica."""
    facts, counts, load = view.facts, view.counts, view.facts.report
    age_s = time.monotonic() - facts.index_updated_at if facts.index_updated_at else None
    failures = {verdict.value: num for verdict, num in counts.num_failures.items() if num}
    return ReplicaReport(
        replica=facts.address,
        state=facts.state.value,
        retired=facts.is_retired,
        breaker="open" if facts.is_breaker_open else "closed",
        index_mode=facts.index_mode.value,
        index_blocks=facts.num_index_blocks,
        index_age_s=_rounded(age_s),
        model=facts.model,
        device=facts.device,
        running=load.num_running,
        waiting=load.num_waiting,
        in_flight=view.num_in_flight,
        queued_tokens=view.queued_tokens,
        kv_usage=kv_usage(load),
        kv_blocks=load.num_total_blocks,
        tokens_per_s=view.trail.tokens_per_s,
        prefill_tokens_per_s=round(load.prefill_tokens_per_s, 1),
        decode_step_s=round(load.decode_step_s, 6),
        requests=counts.num_dispatched,
        prompt_tokens=counts.num_prompt_tokens,
        cached_tokens=counts.num_cached_tokens,
        expected_cached_tokens=counts.num_expected_cached_tokens,
        preemptions=load.num_preemptions,
        failures=failures,
        connections=counts.num_connections,
        history=view.trail.history() if with_history else None,
    )


def request_report(decision: Decision) -> RequestReport:
    """Return what clients are told of a request."""
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
