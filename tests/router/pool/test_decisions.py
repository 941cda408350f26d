"""Why a replica was chosen, and what is remembered of it."""

import pytest
from hypothesis import given, strategies as st

from quire_engine.rpc import engine_pb2 as pb
from quire_router.decisions import CAPACITY, Decision, DecisionLog, Reason
from quire_router.failure import Verdict
from quire_router.policy import Candidate, choose_replica, least_requests


def decided(
    candidates: list[Candidate],
    num_tokens: int = 1000,
    *,
    is_by_cost: bool = True,
    log: DecisionLog | None = None,
) -> Decision:
    chosen = choose_replica(candidates, num_tokens) if is_by_cost else least_requests(candidates)
    return (log or DecisionLog()).add(
        candidates,
        candidates.index(chosen),
        is_by_cost=is_by_cost,
        num_prompt_tokens=num_tokens,
        num_attempts=1,
        waited_s=0.0,
    )


IDLE = Candidate("idle")


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([IDLE], Reason.ONLY),
        ([IDLE, Candidate("queued", queued_tokens=5000)], Reason.COST),
        ([IDLE, Candidate("warm", cached_tokens=16)], Reason.CACHED),
        ([IDLE, Candidate("serving", num_active=1, prefill_rate=9000.0)], Reason.ACTIVE),
        ([IDLE, Candidate("other", last_chosen=7)], Reason.TURN),
    ],
)
def test_a_decision_says_what_decided(candidates: list[Candidate], reason: Reason) -> None:
    assert decided(candidates).reason is reason


def test_least_requests_decides_by_requests_alone() -> None:
    busy = Candidate("busy", num_active=2, cached_tokens=1000)

    assert decided([busy, IDLE], is_by_cost=False).reason is Reason.ACTIVE
    assert decided([IDLE, Candidate("other")], is_by_cost=False).reason is Reason.TURN


@given(
    st.lists(
        st.builds(
            Candidate,
            st.text("abc", min_size=1, max_size=3),
            cached_tokens=st.integers(0, 500),
            queued_tokens=st.integers(0, 5000),
            num_active=st.integers(0, 3),
            last_chosen=st.integers(0, 9),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda item: item.name,
    ),
    st.booleans(),
)
def test_every_choice_has_a_reason_that_holds(
    candidates: list[Candidate], is_by_cost: bool
) -> None:
    decision = decided(candidates, is_by_cost=is_by_cost)

    assert (decision.reason is Reason.ONLY) == (len(candidates) == 1)
    if decision.reason is Reason.COST:
        assert min(decision.costs) == decision.costs[candidates.index(decision.chosen)]


def test_the_log_forgets_the_oldest_and_tells_what_changed() -> None:
    log = DecisionLog()
    decisions = [decided([IDLE], log=log) for _ in range(CAPACITY + 5)]
    seen = log.revision

    decisions[0].failed(Verdict.LOST)
    decisions[-1].started(3)
    decisions[-1].done(pb.Usage(num_completion_tokens=8))

    assert len(log.since(0)) == CAPACITY
    assert log.since(seen) == [decisions[-1]]
    assert decisions[-1].outcome == "done"
    assert (decisions[-1].num_cached_tokens, decisions[-1].num_completion_tokens) == (3, 8)
    assert decisions[-1].number == CAPACITY + 5
