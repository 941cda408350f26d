import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.prefix import block_hashes
from quire_router.prefix_index import SPECULATION_S, IndexMode, KvGapError, PrefixIndex

EPOCH = 7


def snapshot(*hashes: int, seq: int = 0, more: bool = False, epoch: int = EPOCH) -> pb.KvEventBatch:
    return pb.KvEventBatch(epoch=epoch, seq=seq, snapshot=hashes, snapshot_continues=more)


def change(
    seq: int,
    *,
    stored: tuple[int, ...] = (),
    removed: tuple[int, ...] = (),
    cleared: bool = False,
    epoch: int = EPOCH,
) -> pb.KvEventBatch:
    return pb.KvEventBatch(
        epoch=epoch,
        seq=seq,
        cleared=cleared,
        stored=[pb.KvEventBatch.Stored(hashes=stored)] if stored else [],
        removed=removed,
    )


def exact_index(*hashes: int, num_blocks: int = 1000) -> PrefixIndex:
    index = PrefixIndex()
    index.connect(epoch=EPOCH, num_blocks=num_blocks, is_enabled=True)
    index.apply(snapshot(*hashes), now=0.0)
    return index


def test_cached_blocks_are_the_leading_ones() -> None:
    index = exact_index(1, 2, 3)
    assert index.num_cached([1, 2, 3, 4, 5]) == 3
    assert index.num_cached([1, 2]) == 2
    assert index.num_cached([9, 2, 3]) == 0
    assert index.num_cached([]) == 0


def test_a_snapshot_counts_once_it_is_complete() -> None:
    index = PrefixIndex()
    index.connect(epoch=EPOCH, num_blocks=1000, is_enabled=True)

    index.apply(snapshot(1, seq=5, more=True), now=0.0)
    assert index.num_cached([1, 2]) == 0
    assert index.mode.value == "degraded"

    index.apply(snapshot(2, seq=5), now=0.0)
    assert index.num_cached([1, 2]) == 2
    assert index.mode.value == "exact"


def test_changes_apply_in_the_order_cleared_stored_removed() -> None:
    index = exact_index(1, 2, 3)
    index.apply(change(1, cleared=True, stored=(4, 5), removed=(5,)), now=0.0)
    assert index.num_cached([1]) == 0
    assert index.num_cached([4, 5]) == 1


def test_a_gap_is_noticed_and_history_serves_until_the_next_snapshot() -> None:
    index = exact_index(1, 2)

    with pytest.raises(KvGapError, match="2 came after 0"):
        index.apply(change(2, stored=(3,)), now=0.0)
    index.subscribe()

    assert index.mode is IndexMode.DEGRADED
    assert index.num_cached([1, 2, 3]) == 2
    index.apply(snapshot(1, seq=9), now=0.0)
    assert index.num_cached([1, 2, 3]) == 1


def test_events_of_another_epoch_are_refused() -> None:
    index = exact_index(1)
    with pytest.raises(KvGapError, match="epoch 8"):
        index.apply(change(1, stored=(2,), epoch=8), now=0.0)


def test_a_new_epoch_forgets_and_the_same_one_does_not() -> None:
    index = exact_index(1, 2)
    index.connect(epoch=EPOCH, num_blocks=1000, is_enabled=True)
    assert index.num_cached([1, 2]) == 2

    index.connect(epoch=EPOCH + 1, num_blocks=1000, is_enabled=True)
    assert index.num_cached([1, 2]) == 0
    assert len(index) == 0


def test_what_was_just_sent_is_expected_for_a_while() -> None:
    index = exact_index()
    index.speculate([1, 2], now=10.0)
    index.expire(now=10.0 + 0.9 * SPECULATION_S)
    assert index.num_cached([1, 2]) == 2

    index.expire(now=10.0 + 1.1 * SPECULATION_S)
    index.expire(now=10.0 + 2.2 * SPECULATION_S)
    assert index.num_cached([1, 2]) == 0


def test_an_eviction_overrules_a_guess() -> None:
    index = exact_index(1)
    index.speculate([1, 2], now=0.0)
    index.apply(change(1, removed=(2,)), now=0.0)
    assert index.num_cached([1, 2]) == 1


def test_history_without_events_is_bounded_by_twice_the_cache() -> None:
    index = PrefixIndex()
    index.connect(epoch=EPOCH, num_blocks=100, is_enabled=True)
    for start in range(0, 5000, 10):
        index.speculate(range(start, start + 10), now=0.0)
    assert 100 <= len(index) <= 210
    assert index.num_cached(range(4990, 5000)) == 10


def test_guesses_are_bounded_in_exact_mode_too() -> None:
    index = exact_index(num_blocks=100)
    for start in range(0, 5000, 10):
        index.speculate(range(start, start + 10), now=0.0)
    assert len(index) <= 210


def test_more_blocks_than_the_engine_has_are_a_gap() -> None:
    index = exact_index(num_blocks=10)
    with pytest.raises(KvGapError, match="21 blocks"):
        index.apply(change(1, stored=tuple(range(21))), now=0.0)


def test_an_engine_without_a_cache_has_nothing_cached() -> None:
    index = PrefixIndex()
    index.connect(epoch=EPOCH, num_blocks=10, is_enabled=False)
    index.speculate([1], now=0.0)
    assert index.num_cached([1]) == 0
    assert index.mode is IndexMode.OFF


prompts = st.lists(st.integers(0, 3), max_size=24)


@given(st.lists(prompts, max_size=6), prompts)
def test_lookup_equals_the_longest_shared_prefix(known: list[list[int]], prompt: list[int]) -> None:
    index = exact_index()
    for number, tokens in enumerate(known):
        hashes = block_hashes(tokens, 2, seed=3)
        index.apply(change(number + 1, stored=tuple(hashes)), now=0.0)

    found = index.num_cached(block_hashes(prompt, 2, seed=3))

    assert found == max((shared_blocks(tokens, prompt) for tokens in known), default=0)


def shared_blocks(left: list[int], right: list[int]) -> int:
    num = 0
    while (num + 1) * 2 <= min(len(left), len(right)) and (
        left[num * 2 : num * 2 + 2] == right[num * 2 : num * 2 + 2]
    ):
        num += 1
    return num


class IndexAgainstModel(RuleBasedStateMachine):
    """Chains 10c, 10c+1, ... are cached up to a length; the engine evicts from the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = dict.fromkeys(range(4), 0)
        self.seq = 0
        self.index = exact_index()

    def chain(self, number: int, length: int) -> list[int]:
        return [10 * number + position for position in range(1, length + 1)]

    @rule(number=st.integers(0, 3), length=st.integers(1, 8))
    def store(self, number: int, length: int) -> None:
        self.seq += 1
        self.index.apply(change(self.seq, stored=tuple(self.chain(number, length))), now=0.0)
        self.cached[number] = max(self.cached[number], length)

    @precondition(lambda self: any(self.cached.values()))
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, length in self.cached.items() if length]))
        keep = data.draw(st.integers(0, self.cached[number] - 1))
        self.seq += 1
        gone = self.chain(number, self.cached[number])[keep:]
        self.index.apply(change(self.seq, removed=tuple(gone)), now=0.0)
        self.cached[number] = keep

    @rule()
    def clear(self) -> None:
        self.seq += 1
        self.index.apply(change(self.seq, cleared=True), now=0.0)
        self.cached = dict.fromkeys(self.cached, 0)

    @rule()
    def lose_events_and_resubscribe(self) -> None:
        self.index.subscribe()
        blocks = [b for number, length in self.cached.items() for b in self.chain(number, length)]
        self.index.apply(snapshot(*blocks, seq=self.seq), now=0.0)

    @invariant()
    def lookups_agree(self) -> None:
        for number, length in self.cached.items():
            assert self.index.num_cached(self.chain(number, 8)) == length
        assert len(self.index) == sum(self.cached.values())


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=30, stateful_step_count=20)
