"""Reference-counted pool of KV-cache blocks.

A block is in exactly one of three states:

    free      ref_count == 0, content worthless
    cached    ref_count == 0, content reusable under its hash, evictable (LRU)
    in use    ref_count >= 1, perhaps with a content that others may share

Invariant: free + cached + in use == num_blocks, and each hash leads to the one block whose content
has it. `check()` verifies it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from quire_engine.core.block_content import BlockContent
from quire_engine.core.kv_events import KvEventLog


class BlockPool:
    """Blocks 0 to num_blocks - 1. Every operation is O(1) per block."""

    def __init__(self, num_blocks: int, events: KvEventLog) -> None:
        self.num_blocks = num_blocks
        self._events = events
        self._ref_counts = [0] * num_blocks
        self._contents: list[BlockContent | None] = [None] * num_blocks
        self._free = list(reversed(range(num_blocks)))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._by_hash: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def cached_hashes(self) -> set[int]:
        """Hashes under which a block can be found, in use or not."""
        return set(self._by_hash)

    def find(self, content: BlockContent, parent: BlockContent) -> int | None:
        """Return the block that holds `content` after `parent`, or None.

        The hash only suggests a block; tokens and parents decide.
        """
        block = self._by_hash.get(content.block_hash)
        if block is None:
            return None
        found = self.content_of(block)
        if found.tokens != content.tokens or found.parent is None:
            return None
        if found.parent is not parent:
            if not found.parent.is_same(parent):
                return None
            found.parent = parent  # the next comparison is one of pointers
        return block

    def content_of(self, block: int) -> BlockContent:
        content = self._contents[block]
        assert content is not None, f"block {block} has no content"
        return content

    def num_unused(self, blocks: Iterable[int]) -> int:
        """Return how many of `blocks` count as free until somebody acquires them."""
        return sum(1 for block in blocks if not self._ref_counts[block])

    def acquire(self, blocks: Iterable[int]) -> None:
        """Share cached or used blocks with one more sequence."""
        for block in blocks:
            if not self._ref_counts[block]:
                del self._cached[block]
            self._ref_counts[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks for new content: free ones, then the least recently used cached ones."""
        assert num_blocks <= self.num_free, f"{num_blocks} blocks wanted, {self.num_free} free"
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each block of a sequence, in the order of its table."""
        # Reversed, so that LRU evicts a prefix from its tail: a head without
        # its tail is still a usable prefix, a tail without its head is not.
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            if self._contents[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def store(self, block: int, content: BlockContent) -> BlockContent:
        """Make a used block findable by its content; return the content that is findable.

        That is an equal one when another block has it already. On a hash collision the first
        block keeps the hash and this one stays private.
        """
        holder = self._by_hash.get(content.block_hash)
        if holder is not None:
            held = self.content_of(holder)
            return held if held.is_same(content) else content
        assert content.parent is not None, "only a root has no parent"
        self._by_hash[content.block_hash] = block
        self._contents[block] = content
        self._events.store(content.block_hash, content.parent.block_hash)
        return content

    def forget_unused(self) -> None:
        """Turn every cached block into a free one."""
        for block in list(self._cached):
            self._free.append(self._evict())
            assert self._contents[block] is None, f"block {block} kept its content"
        self._events.clear()
        for content in map(self.content_of, self._by_hash.values()):
            assert content.parent is not None, "only a root has no parent"
            self._events.store(content.block_hash, content.parent.block_hash)

    def check(self, references: Mapping[int, int]) -> None:
        """Raise AssertionError unless the invariants hold.

        `references` counts, by block, the tables of live sequences that it is in.
        """
        for block, count in enumerate(self._ref_counts):
            expected = references.get(block, 0)
            assert count == expected, f"block {block}: ref_count {count}, in {expected} tables"
        free, cached = set(self._free), set(self._cached)
        used = {block for block, count in enumerate(self._ref_counts) if count}
        assert len(free) == len(self._free), "a block is free twice"
        both = (free & cached) | (free & used) | (cached & used)
        assert not both, f"blocks in two states: {both}"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "a block is in no state"
        with_content = {i for i, content in enumerate(self._contents) if content is not None}
        assert cached <= with_content, f"cached without content: {cached - with_content}"
        assert not free & with_content, f"free with content: {free & with_content}"
        found = {self._by_hash.get(self.content_of(block).block_hash) for block in with_content}
        assert found == with_content, "a content is not found by its hash"
        assert len(self._by_hash) == len(with_content), "a hash leads nowhere"

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        block_hash = self.content_of(block).block_hash
        self._contents[block] = None
        del self._by_hash[block_hash]
        self._events.remove(block_hash)
        return block
