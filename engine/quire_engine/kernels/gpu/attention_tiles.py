"""Which tiles attention gets: measured ones from the shipped table, else what suits its shape.

`python -m quire_engine.runner.gpu.tune_decode` and `quire_engine.kernels.gpu.tune_prefill` measure
on a GPU and write the table. Nothing is measured while serving: a choice depends on shapes alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Self

import torch
import triton

HOPPER_SHARED_BYTES = 232448
"""Shared memory that a block of threads may have on an H100 or H200."""

FEW_PROGRAMS = 128
"""Below about one program for each processor, a program waits for memory instead of sharing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Everything of a model that the choice of tiles may depend on."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv_bytes: int
    """Bytes of a number in the cache."""

    @property
    def group(self) -> int:
        """Query heads of a key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def line_bytes(self) -> int:
        """Bytes of a token's keys in one head, padded as kernels pad them."""
        return int(triton.next_power_of_2(self.head_dim)) * self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTiles:
    """How a launch of decode attention is cut."""

    block_n: int
    """Keys of one step of the loop."""
    num_warps: int
    num_stages: int
    looks_ahead: bool
    """Look up blocks a step ahead: only then do `num_stages` steps of keys load at a time."""
    programs_per_processor: int
    """Programs that keep a multiprocessor's share of memory bandwidth busy."""
    min_split_keys: int
    """Fewer keys than this are not worth a program of their own."""

    def block_splits(self, heads: Heads) -> int:
        """Return how many splits a merge reads at once: what its threads' registers hold."""
        numbers = triton.next_power_of_2(heads.group) * triton.next_power_of_2(heads.head_dim)
        return int(max(1, 128 * 32 * self.num_warps // numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTiles:
    """How a launch of prefill attention is cut."""

    block_m: int
    """Rows of a tile: tokens times the query heads of a key/value head."""
    block_n: int
    """Keys of one step of the loop."""
    num_warps: int
    num_stages: int

    def shared_bytes(self, heads: Heads) -> int:
        """Return the shared memory that a program takes: queries, and keys and values in flight."""
        q_bytes = max(heads.line_bytes, int(triton.next_power_of_2(heads.head_dim)) * 2)
        return self.block_m * q_bytes + self.num_stages * 2 * self.block_n * heads.line_bytes


PREFILL_CANDIDATES = tuple(
    PrefillTiles(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in (
        (128, 128, 8, 3),
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (128, 32, 8, 3),
        (128, 32, 8, 2),
        (64, 32, 4, 2),
    )
)
"""From the fastest on a Hopper GPU to what fits into any other's shared memory."""


def default_decode_tiles(heads: Heads, batch_size: int) -> DecodeTiles:
    """Return tiles that nobody measured.

    Large batches: two warps and one step of keys in flight, four programs on a processor, which
    read at the memory's speed. Small ones: more loads in flight in each program.
    """
    num_pairs = batch_size * heads.num_kv_heads
    is_small = num_pairs < FEW_PROGRAMS
    return DecodeTiles(
        block_n=64 if heads.line_bytes <= 256 else 32,
        num_warps=4 if is_small else 2,
        num_stages=3,
        looks_ahead=is_small or heads.kv_bytes == 1,
        programs_per_processor=4,
        # A merge costs a few hundred keys' time in a program that is alone on its processor.
        min_split_keys=256 if num_pairs * 4 <= FEW_PROGRAMS else 128,
    )


def default_prefill_tiles(heads: Heads, shared_bytes: int = HOPPER_SHARED_BYTES) -> PrefillTiles:
    """Return the first candidate that fits into shared memory and registers."""
    smallest = PREFILL_CANDIDATES[-1]
    if heads.kv_bytes == 4:
        return smallest  # The matrix units do not take float32.
    max_keys = _max_prefill_keys(heads)
    fitting = (
        tiles
        for tiles in PREFILL_CANDIDATES
        if tiles.block_n <= max_keys and tiles.shared_bytes(heads) <= shared_bytes
    )
    return next(fitting, smallest)


def _max_prefill_keys(heads: Heads) -> int:
    """Return the most keys a step whose scores and masks stay in registers, as compiled."""
    if heads.head_dim > 128:
        return 32
    is_even = heads.group & (heads.group - 1) == 0 and heads.head_dim & (heads.head_dim - 1) == 0
    return 128 if is_even else 64


class AttentionTable:
    """Measured tiles, by the model's heads; those of decode also by the largest batch."""

    def __init__(
        self,
        decode: Sequence[tuple[Heads, int, DecodeTiles]] = (),
        prefill: Sequence[tuple[Heads, PrefillTiles]] = (),
    ) -> None:
        self._decode: dict[Heads, dict[int, DecodeTiles]] = {}
        for heads, max_batch, tiles in decode:
            self.put_decode(heads, max_batch, tiles)
        self._prefill = dict(prefill)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a table that `dump` wrote."""
        values: Mapping[str, Any] = json.loads(text)
        return cls(
            [
                (Heads(**entry["heads"]), entry["max_batch"], DecodeTiles(**entry["tiles"]))
                for entry in values["decode"]
            ],
            [
                (Heads(**entry["heads"]), PrefillTiles(**entry["tiles"]))
                for entry in values["prefill"]
            ],
        )

    def put_decode(self, heads: Heads, max_batch: int, tiles: DecodeTiles) -> None:
        """Set what was measured; plans that have this table take it from now on."""
        self._decode.setdefault(heads, {})[max_batch] = tiles

    def put_prefill(self, heads: Heads, tiles: PrefillTiles) -> None:
        """Set what was measured."""
        self._prefill[heads] = tiles

    def dump(self) -> str:
        """Return the table as JSON, one line for each choice."""
        decode = [
            json.dumps({"heads": asdict(heads), "max_batch": size, "tiles": asdict(tiles)})
            for heads, sizes in self._decode.items()
            for size, tiles in sorted(sizes.items())
        ]
        prefill = [
            json.dumps({"heads": asdict(heads), "tiles": asdict(tiles)})
            for heads, tiles in self._prefill.items()
        ]
        lists = (("decode", decode), ("prefill", prefill))
        return "{" + ",".join(f'"{k}": [\n' + ",\n".join(v) + "\n]" for k, v in lists) + "}\n"

    def decode(self, heads: Heads, batch_size: int) -> DecodeTiles:
        """Choose for a batch size."""
        measured = self._decode.get(heads, {})
        sizes = [size for size in measured if size >= batch_size]
        return measured[min(sizes)] if sizes else default_decode_tiles(heads, batch_size)

    def prefill(self, heads: Heads, shared_bytes: int = HOPPER_SHARED_BYTES) -> PrefillTiles:
        """Choose for a GPU with some shared memory."""
        measured = self._prefill.get(heads)
        if measured is not None and measured.shared_bytes(heads) <= shared_bytes:
            return measured
        return default_prefill_tiles(heads, shared_bytes)


@cache
def shipped_attention_table(gpu: str = "h200") -> AttentionTable:
    """Return the table that was measured on a kind of GPU."""
    folder = resources.files("quire_engine.kernels.gpu") / "tiles"
    return AttentionTable.parse((folder / f"{gpu}_attention.json").read_text())


@cache
def shared_bytes_of(device: torch.device) -> int:
    """Return the shared memory that a block of threads may have."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
