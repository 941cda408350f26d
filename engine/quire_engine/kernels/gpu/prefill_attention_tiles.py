"""How a step's prefill attention is cut into tiles, on the CPU, which knows all lengths.

A tile is some neighbouring tokens of one sequence with all query heads of one key/value head, as
rows of one matrix. The tiles with the most keys come first, so that none is left for the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILE_FIELDS = 4
"""Integers of a tile: first token, number of tokens, row, position of the first token."""

IntArray = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """Tokens of one sequence that a step computes; their keys are in the cache by then."""

    row: int
    """Row of the sequence in the block table."""
    first_token: int
    """Index of the first of them among the step's tokens."""
    num_tokens: int
    position: int
    """Position of the first of them: the number of keys before it."""


def cut_prefill_tiles(chunks: Sequence[PrefillChunk], tile_tokens: int) -> IntArray:
    """Return the tiles, (number of tiles, TILE_FIELDS), with the most keys first."""
    if not chunks:
        return np.empty((0, TILE_FIELDS), dtype=np.int32)
    columns = [(c.first_token, c.num_tokens, c.row, c.position) for c in chunks]
    first, length, row, position = np.array(columns, dtype=np.int64).T
    num_tiles = -(-length // tile_tokens)
    chunk = np.repeat(np.arange(len(chunks)), num_tiles)
    index = np.arange(len(chunk)) - np.repeat(num_tiles.cumsum() - num_tiles, num_tiles)
    start = index * tile_tokens
    tokens = np.minimum(length[chunk] - start, tile_tokens)
    position = position[chunk] + start
    tiles = np.stack([first[chunk] + start, tokens, row[chunk], position], axis=1)
    order = np.argsort(-(position + tokens), kind="stable")
    return tiles[order].astype(np.int32)
