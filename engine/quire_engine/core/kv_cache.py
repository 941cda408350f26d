"""Which blocks hold the keys and values of which sequence, and which can be reused.

A sequence gets the blocks of all its known tokens when it is admitted, then one at a time as it
decodes. A block is offered to the prefix cache once all its tokens are computed, never before, so
whoever finds it can read it.
"""

from collections import Counter
from collections.abc import Iterable

from quire_engine.core.block_content import ContentChain
from quire_engine.core.block_pool import BlockPool
from quire_engine.core.kv_events import KvEventLog
from quire_engine.core.messages import KvEvents
from quire_engine.core.sequence import Sequence


class KvCache:
    """Block tables of live sequences over one pool."""

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_model: str, enable_prefix_caching: bool
    ) -> None:
        self._events = KvEventLog()
        self.pool = BlockPool(num_blocks, self._events)
        self.block_size = block_size
        self._prefix_model = prefix_model
        self._is_caching = enable_prefix_caching

    @property
    def num_slots(self) -> int:
        """Tokens that fit in the whole cache."""
        return self.pool.num_blocks * self.block_size

    @property
    def has_events(self) -> bool:
        return not self._events.is_empty

    def take_events(self) -> KvEvents | None:
        return self._events.take()

    def new_chain(self, token_ids: list[int], cache_salt: str) -> ContentChain:
        """Return the contents of a prompt's full blocks; none when nothing is cached."""
        chain = ContentChain(self._prefix_model, cache_salt, self.block_size)
        if self._is_caching:
            chain.extend(token_ids, len(token_ids) // self.block_size)
        return chain

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Return the cached blocks that a sequence without blocks could start with.

        At least one token is left to compute, since the next one is sampled from it.
        """
        blocks: list[int] = []
        if not (sequence.reads_cache and self._is_caching):
            return blocks
        chain = sequence.chain
        for index in range(min(len(chain.contents), (sequence.num_tokens - 1) // self.block_size)):
            block = self.pool.find(chain.contents[index], chain.parent_of(index))
            if block is None:
                break
            chain.adopt(index, self.pool.content_of(block))
            blocks.append(block)
        return blocks

    def can_admit(self, sequence: Sequence, prefix: list[int], *, num_spare_blocks: int) -> bool:
        """Whether all tokens fit, `prefix` being shared, with so many blocks to spare."""
        num_new = self._num_blocks_for(sequence.num_tokens) - len(prefix)
        num_taken = num_new + self.pool.num_unused(prefix)
        return self.pool.num_free >= num_taken + num_spare_blocks

    def admit(self, sequence: Sequence, prefix: list[int]) -> None:
        """Give a sequence blocks for all its tokens; those of `prefix` are computed."""
        num_new = self._num_blocks_for(sequence.num_tokens) - len(prefix)
        self.pool.acquire(prefix)
        sequence.block_ids = prefix + self.pool.allocate(num_new)
        sequence.num_stored_blocks = len(prefix)
        sequence.num_computed_tokens = sequence.num_scheduled_tokens = len(prefix) * self.block_size

    def needs_block(self, sequence: Sequence) -> bool:
        """Whether the last token has no slot."""
        num_tokens = len(sequence.token_ids) + sequence.num_pending_samples
        return num_tokens > len(sequence.block_ids) * self.block_size

    def grow(self, sequence: Sequence) -> list[int]:
        """Append a block to the sequence's table; return what was appended."""
        blocks = self.pool.allocate(1)
        sequence.block_ids += blocks
        return blocks

    def store_computed(self, sequence: Sequence) -> None:
        """Offer the blocks that became full of computed tokens to other sequences."""
        num_full = sequence.num_computed_tokens // self.block_size
        first = sequence.num_stored_blocks
        if num_full == first:
            return
        sequence.num_stored_blocks = num_full
        if not self._is_caching:
            return
        chain = sequence.chain
        chain.extend(sequence.token_ids, num_full)
        for index in range(first, num_full):
            block = sequence.block_ids[index]
            chain.adopt(index, self.pool.store(block, chain.contents[index]))

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back; what was stored stays findable until evicted."""
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_stored_blocks = 0
        sequence.num_computed_tokens = sequence.num_scheduled_tokens = 0
        sequence.num_pending_samples = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError unless the pool agrees with the tables of all live sequences."""
        references: Counter[int] = Counter()
        for sequence in sequences:
            references.update(sequence.block_ids)
            num_slots = len(sequence.block_ids) * self.block_size
            assert sequence.num_computed_tokens <= num_slots, f"{sequence.seq_id} lacks blocks"
        self.pool.check(references)

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
