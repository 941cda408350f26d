from hypothesis import given, strategies as st

from quire_engine.rpc import engine_pb2 as pb
from quire_router.load import SETTLE_S, ReplicaLoad, Sent


def test_what_was_sent_counts_at_once() -> None:
    load = ReplicaLoad()
    load.sent(1, Sent(100, 7, sent_at=0.0))
    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (100, 1, 7)


def test_a_report_too_young_to_include_it_does_not_replace_it() -> None:
    load = ReplicaLoad()
    load.sent(1, Sent(100, 7, sent_at=0.0))
    load.reported(pb.Load(seq=1, num_waiting_uncached_tokens=50), now=SETTLE_S / 2)
    assert load.queued_tokens == 150


def test_a_report_that_includes_it_replaces_it() -> None:
    load = ReplicaLoad()
    load.sent(1, Sent(100, 7, sent_at=0.0))
    report = pb.Load(seq=1, num_waiting_uncached_tokens=90, num_waiting=1, num_used_blocks=3)
    load.reported(report, now=2 * SETTLE_S)
    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (90, 1, 3)


def test_a_repeated_report_says_nothing_new() -> None:
    load = ReplicaLoad()
    load.reported(pb.Load(seq=1), now=0.0)
    load.sent(1, Sent(100, 7, sent_at=0.0))
    load.reported(pb.Load(seq=1), now=10.0)
    assert load.queued_tokens == 100


def test_the_first_token_means_that_the_prompt_is_computed() -> None:
    load = ReplicaLoad()
    load.sent(1, Sent(100, 7, sent_at=0.0))
    load.started(1)
    assert (load.queued_tokens, load.num_active) == (0, 1)
    load.ended(1)
    assert load.num_active == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["start", "end", "report"]))))
def test_everything_that_ended_leaves_nothing_behind(events: list[tuple[int, str]]) -> None:
    load = ReplicaLoad()
    for ticket in range(6):
        load.sent(ticket, Sent(10, 1, sent_at=float(ticket)))
    alive = set(range(6))
    for number, (ticket, kind) in enumerate(events):
        if kind == "report":
            load.reported(pb.Load(seq=number + 1), now=float(ticket))
        elif ticket in alive and kind == "end":
            alive.remove(ticket)
            load.ended(ticket)
        elif ticket in alive:
            load.started(ticket)

    for ticket in alive:
        load.ended(ticket)

    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (0, 0, 0)
