"""What workers share, slot by slot: written by one, read by others, outliving both."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings, strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from quire_engine.rpc import engine_pb2 as pb
from quire_router.exposition import exposition
from quire_router.load import Sent
from quire_router.prefix_index import IndexMode
from quire_router.replica import ReplicaState
from quire_router.replica_account import VERDICTS
from quire_router.replica_view import ReplicaFacts
from quire_router.workers.load import Others, SharedLoad
from quire_router.workers.memory import MAX_REPLICAS, RING_WORDS, WorkerMemory
from quire_router.workers.prompts import MAX_RECORD_WORDS, SentPrompts
from quire_router.workers.rows import Row, Rows, RowState
from quire_router.workers.values import Adopter, SharedValues
from quire_router.workers.views import Views, WorkerView


@contextmanager
def metrics_of(memory: WorkerMemory, number: int) -> Iterator[CollectorRegistry]:
    """Make metrics as a worker does: what is made meanwhile is its own."""
    shared, registry = SharedValues(memory, number), CollectorRegistry()
    registry.register(Adopter(shared, registry))
    before = values.ValueClass
    values.ValueClass = shared.value_class()
    try:
        yield registry
    finally:
        values.ValueClass = before


def row(memory: WorkerMemory, number: int, address: str = "a:1") -> Row:
    claimed = Rows(memory.slots[number]).claim(address)
    assert claimed is not None
    return claimed


def facts(address: str) -> ReplicaFacts:
    return ReplicaFacts(
        address=address,
        state=ReplicaState.READY,
        is_retired=False,
        is_breaker_open=False,
        index_mode=IndexMode.EXACT,
        num_index_blocks=3,
        index_updated_at=1.5,
        heard_at=2.5,
        model="m",
        device="cpu",
        report=pb.Load(epoch=2**63, num_running=4, prefill_tokens_per_s=0.5),
    )


def test_a_load_counts_what_other_workers_have_sent() -> None:
    memory = WorkerMemory(2)
    mine, others = row(memory, 0), Others()
    others.rows = [row(memory, 1)]
    load, other = SharedLoad(mine, others), SharedLoad(others.rows[0], Others())

    other.sent(1, Sent(100, 7, sent_at=0.0))
    other.sent(2, Sent(10, 1, sent_at=0.0))
    load.sent(1, Sent(5, 2, sent_at=0.0))

    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (115, 3, 10)
    assert (other.queued_tokens, other.num_active) == (110, 2)
    other.started(1)
    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (15, 3, 3)
    other.ended(1)
    other.ended(2)
    assert (load.queued_tokens, load.num_active, load.num_used_blocks) == (5, 1, 2)


def test_a_report_settles_what_others_see() -> None:
    memory = WorkerMemory(1)
    mine = row(memory, 0)
    load = SharedLoad(mine, Others())
    load.sent(1, Sent(100, 7, sent_at=0.0))

    load.reported(pb.Load(seq=1, num_running=1), now=1.0)

    assert (mine.num_sent_tokens, mine.num_own) == (0, 1)


def test_a_row_keeps_its_address_and_counts_when_its_worker_is_replaced() -> None:
    memory = WorkerMemory(1)
    first = row(memory, 0, "unix:/run/engine-ä.sock")
    first.counts.num_dispatched += 3
    first.counts.failed(VERDICTS[-1])
    first.set_own(num_requests=2, num_blocks=9)

    Rows(memory.slots[0]).release_all()
    again = row(memory, 0, "unix:/run/engine-ä.sock")

    assert again.address == "unix:/run/engine-ä.sock"
    assert (again.number, again.state, again.num_own) == (first.number, RowState.LIVE, 0)
    assert again.counts.num_dispatched == again.counts.num_failures[VERDICTS[-1]] + 2 == 3


def test_rows_of_replicas_that_are_gone_are_used_again_when_all_are_taken() -> None:
    rows = Rows(WorkerMemory(1).slots[0])
    taken = [rows.claim(f"10.0.0.1:{port}") for port in range(MAX_REPLICAS)]
    assert rows.claim("10.0.0.2:1") is None

    gone = taken[5]
    assert gone is not None
    gone.counts.num_dispatched += 1
    gone.set_state(RowState.GONE)
    claimed = rows.claim("10.0.0.2:1")

    assert claimed is not None
    assert claimed.number == gone.number
    assert claimed.counts.num_dispatched == 0
    assert set(rows.by_address()) == {
        "10.0.0.2:1",
        *(f"10.0.0.1:{port}" for port in range(MAX_REPLICAS) if port != 5),
    }


def test_an_address_too_long_for_a_row_gets_none() -> None:
    assert Rows(WorkerMemory(1).slots[0]).claim("a" * 1000) is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3000)), max_size=60), st.integers(1, 9))
def test_a_reader_in_time_hears_every_prompt_in_order(
    sizes: list[tuple[int, int]], every: int
) -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = SentPrompts(slot), SentPrompts(slot)
    told, heard = [], []

    for number, (row_number, size) in enumerate(sizes):
        hashes = [number << 40 | 2**63 | position for position in range(size)]
        writer.add(row_number, hashes)
        told.append((row_number, hashes))
        if number % every == 0:
            heard += [(at, list(found)) for at, found in reader.new()]
    heard += [(at, list(found)) for at, found in reader.new()]

    assert heard == told


def test_a_reader_that_was_too_slow_hears_what_comes_next() -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = SentPrompts(slot), SentPrompts(slot)
    for _ in range(RING_WORDS // 1000 + 1):
        writer.add(0, range(1000))

    assert list(reader.new()) == []
    writer.add(3, [1, 2])

    assert [(at, list(found)) for at, found in reader.new()] == [(3, [1, 2])]


def test_of_a_prompt_longer_than_a_record_the_beginning_is_told() -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = SentPrompts(slot), SentPrompts(slot)
    writer.add(0, range(10 * MAX_RECORD_WORDS))

    [(_, found)] = reader.new()

    assert list(found) == list(range(len(found)))
    assert len(found) > MAX_RECORD_WORDS // 2


def test_a_record_that_is_being_written_over_is_not_believed() -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = SentPrompts(slot), SentPrompts(slot)
    writer.add(0, [1, 2, 3])
    slot.ring[3] = 77

    assert list(reader.new()) == []


def test_a_view_is_read_as_it_was_published() -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = Views(slot), Views(slot)
    assert reader.last() == WorkerView()
    for number in range(3):
        view = WorkerView(replicas=[facts(f"a:{number}"), facts("b:1")], num_parked=number)
        writer.publish(view)
        assert reader.last() == view


def test_a_view_that_is_half_written_leaves_the_last_one() -> None:
    slot = WorkerMemory(1).slots[0]
    writer, reader = Views(slot), Views(slot)
    writer.publish(WorkerView(num_parked=1))
    reader.last()

    writer.publish(WorkerView(num_parked=2))
    slot.views[0][20] ^= 1

    assert reader.last().num_parked == 1


def test_counters_and_histograms_of_workers_add_up() -> None:
    memory = WorkerMemory(2)
    shown = []
    for number in range(2):
        with metrics_of(memory, number) as registry:
            requests = Counter("requests", "Help.", ("route",), registry=registry)
            seconds = Histogram("seconds", "Help.", buckets=(1.0,), registry=registry)
            requests.labels("/both").inc(2)
            requests.labels(f'/"{number}"\n').inc()
            seconds.observe(0.5 + number)
            shown.append(exposition(registry).decode())

    assert 'requests_total{route="/both"} 2.0' in shown[0]
    assert 'requests_total{route="/both"} 4.0' in shown[1]
    assert 'requests_total{route="/\\"0\\"\\n"} 1.0' in shown[1]
    assert 'seconds_bucket{le="1.0"} 1.0' in shown[1]
    assert "seconds_count 2.0" in shown[1]
    assert "seconds_sum 2.0" in shown[1]


def test_a_worker_that_is_replaced_goes_on_counting_and_its_gauges_begin_at_0() -> None:
    memory = WorkerMemory(1)
    with metrics_of(memory, 0) as registry:
        Counter("requests", "Help.", registry=registry).inc(3)
        Gauge("running", "Help.", registry=registry, multiprocess_mode="livesum").inc(2)
    SharedValues(memory, 0).clear_gauges()
    with metrics_of(memory, 0) as registry:
        Counter("requests", "Help.", registry=registry).inc(3)
        Gauge("running", "Help.", registry=registry, multiprocess_mode="livesum")

    assert registry.get_sample_value("requests_total") == 6
    assert registry.get_sample_value("running") == 0


@pytest.mark.parametrize(("mode", "shown"), [("livesum", 4.0), ("max", 3.0)])
def test_gauges_are_added_up_or_the_largest_is_shown(mode: str, shown: float) -> None:
    memory = WorkerMemory(2)
    found = []
    for number, value in enumerate((3.0, 1.0)):
        with metrics_of(memory, number) as registry:
            Gauge("level", "Help.", registry=registry, multiprocess_mode=mode).set(value)  # type: ignore[arg-type]
            found.append(registry.get_sample_value("level"))

    assert found == [3.0, shown]
