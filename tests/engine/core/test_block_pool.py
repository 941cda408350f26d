import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core_support import apply_events
from quire_engine.core.block_content import BlockContent
from quire_engine.core.block_pool import BlockPool
from quire_engine.core.kv_events import KvEventLog
from quire_engine.rpc.prefix import ROOT_HASH

ROOT = BlockContent(ROOT_HASH, b"", None)


def new_pool(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks, KvEventLog())


def chain(*hashes: int, root: BlockContent = ROOT) -> list[BlockContent]:
    contents: list[BlockContent] = []
    for block_hash in hashes:
        parent = contents[-1] if contents else root
        contents.append(BlockContent(block_hash, b"%d" % block_hash, parent))
    return contents


def store_chain(pool: BlockPool, contents: list[BlockContent]) -> list[int]:
    blocks = pool.allocate(len(contents))
    for block, content in zip(blocks, contents, strict=True):
        pool.store(block, content)
    return blocks


def test_a_released_block_stays_findable_until_it_is_needed() -> None:
    pool = new_pool(2)
    (content,) = chain(7)
    (block,) = store_chain(pool, [content])
    pool.release([block])
    assert pool.num_free == 2
    assert pool.find(content, ROOT) == block
    pool.allocate(2)
    assert pool.find(content, ROOT) is None


def test_a_prefix_is_evicted_from_its_tail() -> None:
    pool = new_pool(3)
    contents = chain(1, 2, 3)
    pool.release(store_chain(pool, contents))
    pool.allocate(1)
    assert pool.cached_hashes == {1, 2}
    pool.allocate(1)
    assert pool.cached_hashes == {1}


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = new_pool(2)
    first, second = chain(1), chain(2)
    blocks = store_chain(pool, first) + store_chain(pool, second)
    pool.release(blocks[:1])
    pool.release(blocks[1:])
    pool.acquire(blocks[:1])
    pool.release(blocks[:1])
    pool.allocate(1)
    assert pool.cached_hashes == {1}


def test_worthless_blocks_are_taken_before_cached_ones() -> None:
    pool = new_pool(3)
    pool.release(store_chain(pool, chain(1)))
    pool.allocate(2)
    assert pool.cached_hashes == {1}


def test_a_shared_block_is_free_only_when_all_have_released_it() -> None:
    pool = new_pool(1)
    blocks = store_chain(pool, chain(1))
    pool.acquire(blocks)
    pool.release(blocks)
    assert pool.num_free == 0
    pool.release(blocks)
    assert pool.num_free == 1


def test_equal_hashes_of_other_tokens_do_not_match() -> None:
    pool = new_pool(2)
    store_chain(pool, chain(1))
    impostor = BlockContent(1, b"other", ROOT)
    assert pool.find(impostor, ROOT) is None
    (block,) = pool.allocate(1)
    assert pool.store(block, impostor) is impostor
    assert pool.find(impostor, ROOT) is None
    pool.check({0: 1, 1: 1})


def test_equal_tokens_after_another_parent_do_not_match() -> None:
    pool = new_pool(4)
    contents = chain(1, 2)
    store_chain(pool, contents)
    impostor = BlockContent(1, b"other", ROOT)
    assert pool.find(BlockContent(2, b"2", impostor), impostor) is None


def test_equal_tokens_under_another_salt_do_not_match_even_when_hashes_collide() -> None:
    pool = new_pool(1)
    store_chain(pool, chain(1))
    tenant = BlockContent(ROOT_HASH, b"tenant", None)
    (content,) = chain(1, root=tenant)
    assert pool.find(content, tenant) is None


def test_an_orphan_is_found_again_once_its_parent_is_back() -> None:
    pool = new_pool(3)
    parent, child = chain(1, 2)
    parent_block, child_block = store_chain(pool, [parent, child])
    pool.release([parent_block])
    pool.allocate(2)  # evicts the parent, not the child
    assert pool.cached_hashes == {2}
    pool.release([parent_block])
    (again,) = chain(1)
    (block,) = pool.allocate(1)
    pool.store(block, again)
    assert pool.find(child, again) == child_block
    assert pool.content_of(child_block).parent is again


def test_forgetting_keeps_what_is_in_use() -> None:
    pool = new_pool(3)
    kept, forgotten = chain(1), chain(2)
    store_chain(pool, kept)
    pool.release(store_chain(pool, forgotten))
    pool.forget_unused()
    assert pool.cached_hashes == {1}
    assert pool.num_free == 2


def test_check_finds_a_leaked_block() -> None:
    pool = new_pool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="ref_count 1, in 0 tables"):
        pool.check({})


class PoolMachine(RuleBasedStateMachine):
    """Tables of sequences come and go; hashes are few, so contents collide and repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.events = KvEventLog()
        self.pool = BlockPool(8, self.events)
        self.tables: list[list[int]] = []
        self.replayed: set[int] = set()

    @rule(num_blocks=st.integers(1, 5))
    def allocate(self, num_blocks: int) -> None:
        if num_blocks <= self.pool.num_free:
            self.tables.append(self.pool.allocate(num_blocks))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), block_hash=st.integers(1, 6), tokens=st.sampled_from([b"a", b"b"]))
    def store(self, data: st.DataObject, block_hash: int, tokens: bytes) -> None:
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        if self.pool._contents[block] is None:
            self.pool.store(block, BlockContent(block_hash, tokens, ROOT))

    @rule(block_hash=st.integers(1, 6), tokens=st.sampled_from([b"a", b"b"]))
    def share(self, block_hash: int, tokens: bytes) -> None:
        block = self.pool.find(BlockContent(block_hash, tokens, ROOT), ROOT)
        if block is not None:
            assert self.pool.content_of(block).tokens == tokens
            self.pool.acquire([block])
            self.tables.append([block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @rule()
    def forget(self) -> None:
        self.pool.forget_unused()

    @rule()
    def tell(self) -> None:
        apply_events(self.replayed, self.events.take())
        assert self.replayed == self.pool.cached_hashes

    @invariant()
    def holds(self) -> None:
        references: dict[int, int] = {}
        for table in self.tables:
            for block in table:
                references[block] = references.get(block, 0) + 1
        self.pool.check(references)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30)
