"""Attention over the paged cache on the CPU, in plain torch.

A step's tokens are cut into tiles: up to TILE_TOKENS tokens of one sequence, with all the keys
they may see. Tiles of similar shape form a group; a group's keys and values are gathered from the
cache into a padded batch and go through two batched products and a softmax. A decoding sequence
is a tile of one token, so prefill and decode are the same code, mixed at will.

Invariant: with bfloat16 on oneDNN, a token's result has the same bits whatever else is in its
tile or group, because products and softmax treat rows alike from two rows on, and padding adds
exact zeros at the end of sums. tests/engine/runner/test_attention.py guards it.

Legend: T tokens of a tile, B tiles of a group, L keys, H query heads, N key/value heads,
G = H / N, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire_engine.model.layers import MIN_ROWS
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.input_batch import Chunk, IntArray
from quire_engine.runner.memory import KvCache

TILE_TOKENS = 64
"""Most tokens of a tile: large enough for the products, small enough for the scores to stay in
the processor's cache."""

MAX_GROUP_SCORES = 1 << 21
"""Most scores (of one layer) that a group may hold."""

MAX_GROUP_KEYS = 1 << 15
"""Most keys that a group may gather, padding included."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Some tokens of a chunk and the range of blocks that their keys are in."""

    chunk: Chunk
    start: int
    num_tokens: int
    first_block: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def first_line(self) -> int:
        return self.chunk.first_line + self.start - self.chunk.start

    def num_blocks(self, block_size: int) -> int:
        return -(-self.end // block_size) - self.first_block


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of similar shape, as indices and a mask that serve every layer."""

    num_tiles: int
    num_tokens: int
    """T, padding included."""
    num_keys: int
    lines: torch.Tensor | slice
    """Lines of the queries: a slice when they lie side by side and nothing is padded."""
    out_lines: torch.Tensor
    """As `lines`, but padding goes to a line that is thrown away."""
    gather: torch.Tensor
    """Lines of `KvCache.by_block` to gather: keys of all tiles, then values."""
    mask: torch.Tensor
    """(B, 1, 1, T, L): 0 where a query may look, -inf elsewhere."""


def cut_tiles(chunk: Chunk, window: int | None, block_size: int) -> list[Tile]:
    """Cut a chunk at multiples of TILE_TOKENS positions."""
    tiles, start = [], chunk.start
    while start < chunk.end:
        end = min(chunk.end, (start // TILE_TOKENS + 1) * TILE_TOKENS)
        oldest = 0 if window is None else max(0, start - window + 1)
        tiles.append(Tile(chunk, start, end - start, oldest // block_size))
        start = end
    return tiles


def group_tiles(tiles: Sequence[Tile], block_size: int, num_heads: int) -> list[list[Tile]]:
    """Group tiles that waste little when padded to the longest of them."""
    ordered = sorted(
        tiles, key=lambda tile: (_padded(tile.num_tokens), tile.num_blocks(block_size))
    )
    groups: list[list[Tile]] = []
    for tile in ordered:
        if groups and _fits(tile, groups[-1], block_size, num_heads):
            groups[-1].append(tile)
        else:
            groups.append([tile])
    return groups


def _fits(tile: Tile, group: list[Tile], block_size: int, num_heads: int) -> bool:
    """Tell whether a tile joins a group; tiles come with growing numbers of blocks."""
    num_tokens, num_blocks = _padded(tile.num_tokens), tile.num_blocks(block_size)
    if num_tokens != _padded(group[0].num_tokens):
        return False
    num_keys = (len(group) + 1) * num_blocks * block_size
    return (
        num_blocks <= group[0].num_blocks(block_size) * 1.25 + 4
        and num_keys <= MAX_GROUP_KEYS
        and num_keys * num_tokens * num_heads <= MAX_GROUP_SCORES
    )


def _padded(num_tokens: int) -> int:
    """Round up to a power of two, so that few shapes occur."""
    return 1 << (num_tokens - 1).bit_length()


class CpuAttention:
    """Stores keys and values and attends, for the tokens of one step after the other."""

    def __init__(self, spec: ModelSpec, cache: KvCache) -> None:
        self._cache = cache
        self._num_heads, self._num_kv_heads = spec.num_heads, spec.num_kv_heads
        self._group_size = spec.num_heads // spec.num_kv_heads
        self._head_dim = spec.head_dim
        self._scale = spec.head_dim**-0.5
        self._windows = [layer.sliding_window for layer in spec.layers]
        self._groups: dict[int | None, list[Group]] = {}
        self._store = torch.empty(0, dtype=torch.int64)
        self._num_lines = 0
        self._scratch: dict[str, torch.Tensor] = {}

    def prepare(self, chunks: Sequence[Chunk], num_lines: int) -> None:
        """Take the layout of a step; `num_lines` counts padding lines at the end as well."""
        self._num_lines = num_lines
        self._store = self._store_lines(chunks)
        self._groups = {window: self._make_groups(chunks, window) for window in set(self._windows)}

    def __call__(self, layer: int, heads_THD: torch.Tensor) -> torch.Tensor:
        """Store a layer's keys and values and return its attention, (lines, H * D)."""
        num_stored = self._store.shape[0]
        self._cache.by_slot[layer].index_put_(
            (self._store,), heads_THD[:num_stored, self._num_heads :]
        )
        # One line more than there are, for what padding computes.
        width = self._num_heads * self._head_dim
        out = self._take("out", (self._num_lines + 1, width), heads_THD.dtype)
        out[num_stored:].zero_()
        for group in self._groups[self._windows[layer]]:
            self._attend(group, layer, heads_THD, out)
        return out[: self._num_lines]

    def _attend(self, group: Group, layer: int, heads_THD: torch.Tensor, out: torch.Tensor) -> None:
        B, T, L, D = group.num_tiles, group.num_tokens, group.num_keys, self._head_dim
        N, G = self._num_kv_heads, self._group_size
        dtype = heads_THD.dtype
        kv = self._take("kv", (group.gather.shape[0], self._cache.block_size * D), dtype)
        torch.index_select(self._cache.by_block[layer], 0, group.gather, out=kv)
        k_BLD, v_BLD = kv.view(2, B * N, L, D)
        q_BTD = self._queries(group, heads_THD)
        scores = self._take("scores", (B * N, G * T, L), dtype)
        scores.baddbmm_(q_BTD, k_BLD.transpose(1, 2), beta=0, alpha=self._scale)
        scores.view(B, N, G, T, L).add_(group.mask)
        weights = torch.softmax(scores, -1, out=self._take("weights", scores.shape, dtype))
        result = torch.bmm(weights, v_BLD, out=self._take("result", q_BTD.shape, dtype))
        if isinstance(group.lines, slice):
            out[group.lines] = result.view(B, -1)
        else:
            by_line = result.view(B, N, G, T, D).permute(0, 3, 1, 2, 4)
            out.index_copy_(0, group.out_lines, by_line.reshape(B * T, -1))

    def _queries(self, group: Group, heads_THD: torch.Tensor) -> torch.Tensor:
        """Return the queries of a group, (B * N, G * T, D)."""
        B, T, D = group.num_tiles, group.num_tokens, self._head_dim
        N, G = self._num_kv_heads, self._group_size
        q = heads_THD[:, : self._num_heads]
        if isinstance(group.lines, slice):
            return q[group.lines].reshape(B * N, G, D)
        q = q.index_select(0, group.lines).view(B, T, N, G, D)
        return q.permute(0, 2, 3, 1, 4).reshape(B * N, G * T, D)

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return scratch memory, kept from call to call: fresh pages are slow to touch."""
        numel = 1
        for size in shape:
            numel *= size
        flat = self._scratch.get(name)
        if flat is None or flat.numel() < numel or flat.dtype != dtype:
            flat = self._scratch[name] = torch.empty(numel, dtype=dtype)
        return flat[:numel].view(shape)

    def _store_lines(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Return the lines of `KvCache.by_slot` for every token, (lines, 2 * N)."""
        block_size, N = self._cache.block_size, self._num_kv_heads
        positions = np.concatenate([np.arange(c.start, c.end) for c in chunks])
        blocks = np.concatenate([c.blocks[np.arange(c.start, c.end) // block_size] for c in chunks])
        heads = np.arange(2 * N)
        # Values lie behind all keys.
        base = heads % N + (heads // N) * self._cache.num_blocks * N
        lines = (blocks[:, None] * N + base) * block_size + (positions % block_size)[:, None]
        return torch.from_numpy(lines)

    def _make_groups(self, chunks: Sequence[Chunk], window: int | None) -> list[Group]:
        block_size = self._cache.block_size
        tiles = [tile for chunk in chunks for tile in cut_tiles(chunk, window, block_size)]
        return [
            self._make_group(tiles, window)
            for tiles in group_tiles(tiles, block_size, self._num_heads)
        ]

    def _make_group(self, tiles: Sequence[Tile], window: int | None) -> Group:
        block_size = self._cache.block_size
        num_tokens = _padded(tiles[0].num_tokens)
        if self._group_size * num_tokens < MIN_ROWS:
            num_tokens = MIN_ROWS
        num_blocks = max(tile.num_blocks(block_size) for tile in tiles)
        first_lines = np.array([tile.first_line for tile in tiles])
        real = np.array([tile.num_tokens for tile in tiles])
        steps = np.arange(num_tokens)
        # Padding repeats a tile's last token: harmless, and never a row of -inf alone.
        within = np.minimum(steps, real[:, None] - 1)
        lines = first_lines[:, None] + within
        out_lines = np.where(steps < real[:, None], lines, self._num_lines)
        return Group(
            num_tiles=len(tiles),
            num_tokens=num_tokens,
            num_keys=num_blocks * block_size,
            lines=_as_slice(lines),
            out_lines=torch.from_numpy(out_lines.reshape(-1)),
            gather=self._gather_lines(tiles, num_blocks),
            mask=self._mask(tiles, within, num_blocks * block_size, window),
        )

    def _gather_lines(self, tiles: Sequence[Tile], num_blocks: int) -> torch.Tensor:
        """Return lines of `KvCache.by_block`, flat: keys and values of (tile, head, block)."""
        N, total = self._num_kv_heads, self._cache.num_blocks
        # Tiles with fewer blocks repeat block 0; the mask hides it.
        table = np.zeros((len(tiles), num_blocks), dtype=np.int64)
        for line, tile in zip(table, tiles, strict=True):
            blocks = tile.chunk.blocks[tile.first_block :][
                : tile.num_blocks(self._cache.block_size)
            ]
            line[: len(blocks)] = blocks
        keys = table[:, None, :] * N + np.arange(N)[None, :, None]
        return torch.from_numpy(np.stack((keys, keys + total * N)).reshape(-1))

    def _mask(
        self, tiles: Sequence[Tile], within: IntArray, num_keys: int, window: int | None
    ) -> torch.Tensor:
        starts = np.array([tile.start for tile in tiles])
        first_keys = np.array([tile.first_block for tile in tiles]) * self._cache.block_size
        queries = torch.from_numpy(starts[:, None] + within)[:, :, None]
        keys = torch.from_numpy(first_keys)[:, None, None] + torch.arange(num_keys)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=self._cache.dtype)
        return mask.masked_fill_(hidden, float("-inf"))[:, None, None]


def _as_slice(lines: IntArray) -> torch.Tensor | slice:
    """Return the lines of single tokens as a slice, when they lie side by side."""
    first, last = int(lines[0, 0]), int(lines[-1, 0])
    if lines.shape[1] == 1 and (lines[:, 0] == np.arange(first, first + len(lines))).all():
        return slice(first, last + 1)
    return torch.from_numpy(lines.reshape(-1))
