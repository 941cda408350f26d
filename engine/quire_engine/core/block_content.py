"""What a full block of the KV cache holds: its tokens, after everything before them.

Blocks are found by a 64-bit hash of all that, and such hashes may collide; equality is decided by
the contents themselves. Contents form a tree by their parents. Equal contents are made the same
object wherever they meet, so that comparing two usually compares two pointers.
"""

from typing import Self

from quire_engine.rpc.prefix import ROOT_HASH, block_hash, pack_tokens, prefix_seed


class BlockContent:
    """Tokens of one full block and, through `parent`, of all blocks before it."""

    __slots__ = ("block_hash", "parent", "tokens")

    def __init__(self, block_hash: int, tokens: bytes, parent: Self | None) -> None:
        self.block_hash = block_hash
        self.tokens = tokens
        self.parent = parent

    def is_same(self, other: "BlockContent") -> bool:
        """Whether both hold the same tokens after the same tokens, under the same salt."""
        one: BlockContent | None = self
        two: BlockContent | None = other
        while one is not two:
            if one is None or two is None or one.tokens != two.tokens:
                return False
            one, two = one.parent, two.parent
        return True


class ContentChain:
    """The contents of one sequence's full blocks, extended as it grows.

    `root` stands before the first block. It carries the salt, so that contents of two tenants
    differ even where their hashes do not.
    """

    __slots__ = ("_block_size", "_seed", "contents", "root")

    def __init__(self, model: str, cache_salt: str, block_size: int) -> None:
        self._block_size = block_size
        self._seed = prefix_seed(model, cache_salt=cache_salt)
        self.root = BlockContent(ROOT_HASH, cache_salt.encode(), None)
        self.contents: list[BlockContent] = []

    def extend(self, token_ids: list[int], num_blocks: int) -> None:
        """Add contents up to `num_blocks` blocks, all full in `token_ids`."""
        first = len(self.contents)
        if num_blocks <= first:
            return
        stride = 4 * self._block_size
        packed = pack_tokens(token_ids[first * self._block_size : num_blocks * self._block_size])
        parent = self.contents[-1] if first else self.root
        for start in range(0, len(packed), stride):
            tokens = packed[start : start + stride]
            hash_ = block_hash(parent.block_hash, tokens, self._seed)
            parent = BlockContent(hash_, tokens, parent)
            self.contents.append(parent)

    def adopt(self, index: int, content: BlockContent) -> None:
        """Replace a content by an equal one that others hold already."""
        self.contents[index] = content
        if index + 1 < len(self.contents):
            self.contents[index + 1].parent = content

    def parent_of(self, index: int) -> BlockContent:
        return self.contents[index - 1] if index else self.root

    def num_shared(self, other: "ContentChain") -> int:
        """Return how many first blocks two chains have in common, as far as hashes tell."""
        low, high = 0, min(len(self.contents), len(other.contents))
        while low < high:  # a hash covers all before it, so equality is monotonous
            middle = (low + high + 1) // 2
            if self.contents[middle - 1].block_hash == other.contents[middle - 1].block_hash:
                low = middle
            else:
                high = middle - 1
        return low
