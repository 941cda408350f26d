from hypothesis import given, strategies as st

from core_support import apply_events
from quire_engine.core.kv_events import KvEventLog
from quire_engine.core.messages import KvEvents
from quire_engine.rpc.prefix import ROOT_HASH

operations = st.lists(
    st.one_of(st.tuples(st.sampled_from(["toggle"]), st.integers(1, 6)), st.just(("clear", 0)),
              st.just(("take", 0)))
)  # fmt: skip


@given(operations)
def test_replaying_events_gives_the_cached_set_whatever_happens_in_a_step(
    steps: list[tuple[str, int]],
) -> None:
    log, cached, replayed = KvEventLog(), set[int](), set[int]()
    for operation, block_hash in [*steps, ("take", 0)]:
        if operation == "clear":
            cached.clear()
            log.clear()
        elif operation == "take":
            apply_events(replayed, log.take())
            assert replayed == cached
        elif block_hash in cached:
            cached.remove(block_hash)
            log.remove(block_hash)
        else:
            cached.add(block_hash)
            log.store(block_hash, ROOT_HASH)


def test_consecutive_blocks_are_stored_as_one_run() -> None:
    log = KvEventLog()
    for block_hash, parent in [(11, ROOT_HASH), (12, 11), (13, 12), (21, ROOT_HASH), (14, 13)]:
        log.store(block_hash, parent)
    assert log.take() == KvEvents(stored=[(ROOT_HASH, [11, 12, 13]), (ROOT_HASH, [21]), (13, [14])])
    assert log.is_empty


def test_what_a_step_undoes_is_not_told() -> None:
    log = KvEventLog()
    log.store(1, ROOT_HASH)
    log.remove(1)
    assert log.take() is None
    log.remove(2)
    log.store(2, ROOT_HASH)
    assert log.take() is None
