"""Which tiles a product gets: measured ones from the shipped table, else what suits its shape.

`python -m quire_engine.runner.gpu.tune_linears` measures on a GPU and writes the table. Nothing is
measured while serving: a choice depends on shapes alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Self

from quire_engine.kernels.gpu.linear_gemv import GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.row_products import SCALE_BLOCK

Tiles = GemvTiles | SkinnyTiles
KINDS: Mapping[str, type[Tiles]] = {"gemv": GemvTiles, "skinny": SkinnyTiles}

MANY_PROGRAMS = 264
"""Programs that keep the memory of a big GPU busy: two for each of 132 processors."""
STAGED_BYTES = 98304
"""Bytes that a program has under way; two of them fit a processor's shared memory."""
MAX_SKINNY_TOKENS = 64
"""Rows up to which reading the weight takes longer than multiplying with it."""
INVARIANT = SkinnyTiles(max_tokens=64, columns=64, depth=64, num_stages=4)
"""Tiles of every batch-invariant product of 16-bit or 32-bit numbers."""
INVARIANT_8_BIT = SkinnyTiles(max_tokens=64, columns=64, depth=128, num_stages=4)
MANY_ROWS_8_BIT = SkinnyTiles(max_tokens=128, columns=128, depth=128, num_warps=8, num_stages=4)
"""Tiles for many rows and a weight with a scale for each block, which no library takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Everything that the choice of tiles may depend on."""

    num_inputs: int
    num_rows: int
    """Rows of the weight: outputs, or twice as many where gates are fused in."""
    gated: bool = False
    element_bytes: int = 2
    """Bytes of a weight."""
    scale_dims: int = 0
    """0: no scales; 1: one for each row of the weight; 2: one for each block."""

    @property
    def num_outputs(self) -> int:
        return self.num_rows // 2 if self.gated else self.num_rows


class TileTable:
    """Measured tiles, by product and the most tokens that they are for."""

    def __init__(self, entries: Sequence[tuple[Product, int, Tiles | None]] = ()) -> None:
        self._tiles: dict[Product, dict[int, Tiles | None]] = {}
        for product, max_tokens, tiles in entries:
            self.put(product, max_tokens, tiles)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a table that `dump` wrote."""
        return cls([_parse_entry(values) for values in json.loads(text)["products"]])

    def put(self, product: Product, max_tokens: int, tiles: Tiles | None) -> None:
        """Set what was measured; linears that have this table take it from now on."""
        self._tiles.setdefault(product, {})[max_tokens] = tiles

    def choose(self, product: Product, num_tokens: int) -> Tiles | None:
        """Return the tiles for some rows of x; None: the vendor's library is faster."""
        measured = self._tiles.get(product, {})
        sizes = [size for size in measured if size >= num_tokens > 1 or size == num_tokens]
        return measured[min(sizes)] if sizes else default_tiles(product, num_tokens)

    def row_counts(self) -> list[int]:
        """Return numbers of rows that together meet every kernel, for whoever warms them up."""
        sizes = {size for measured in self._tiles.values() for size in measured}
        sizes |= {1, 16, 32, MAX_SKINNY_TOKENS}
        return [*sorted(sizes), max(sizes) + 1]

    def entries(self) -> Iterator[tuple[Product, int, Tiles | None]]:
        """Yield what was measured: product, most tokens, tiles."""
        for product, sizes in self._tiles.items():
            for size, tiles in sorted(sizes.items()):
                yield product, size, tiles

    def dump(self) -> str:
        """Return the table as JSON, one line for each choice."""
        lines = []
        for product, max_tokens, tiles in self.entries():
            kind = next((name for name, type_ in KINDS.items() if isinstance(tiles, type_)), None)
            values = {"product": asdict(product), "max_tokens": max_tokens, "kind": kind}
            lines.append(json.dumps(values | ({"tiles": asdict(tiles)} if tiles else {})))
        return '{"products": [\n' + ",\n".join(lines) + "\n]}\n"


class LibraryTable(TileTable):
    """Leaves every product to the library, where kernels are only interpreted."""

    def choose(self, product: Product, num_tokens: int) -> Tiles | None:
        return None


def _parse_entry(values: Mapping[str, Any]) -> tuple[Product, int, Tiles | None]:
    kind = values["kind"]
    tiles = None if kind is None else KINDS[kind](**values["tiles"])
    return Product(**values["product"]), int(values["max_tokens"]), tiles


def default_tiles(product: Product, num_tokens: int) -> Tiles | None:
    """Return tiles for a product that nobody measured."""
    if num_tokens == 1:
        return default_gemv(product)
    if num_tokens <= MAX_SKINNY_TOKENS and product.element_bytes <= 2:
        return default_skinny(product, num_tokens)
    return None


def default_skinny(product: Product, num_tokens: int) -> SkinnyTiles | None:
    """Cut a product of few rows so that twice as many programs as processors read the weight.

    Each keeps about STAGED_BYTES of it under way. None: the shape leaves no whole tiles.
    """
    max_tokens = max(_power_of_two(num_tokens), 16)
    depth = 256 // product.element_bytes if product.scale_dims < 2 else 128
    widest = 32 if max_tokens < 64 else 64
    for columns in (widest, 32, 16):
        if product.num_outputs % columns or product.num_inputs % depth:
            continue
        splits = _splits(product.num_inputs // depth, product.num_outputs // columns)
        rows = columns * (2 if product.gated else 1) + max_tokens
        num_stages = STAGED_BYTES // (rows * depth * product.element_bytes)
        return SkinnyTiles(
            max_tokens=max_tokens,
            columns=columns,
            depth=depth,
            splits=splits,
            prefetch=512 // product.element_bytes,
            num_stages=min(max(num_stages, 3), 5),
        )
    return None


def _splits(num_steps: int, num_programs: int) -> int:
    """Return the fewest parts that make enough programs, of at least four steps each."""
    enough = 1
    for splits in (1, 2, 4, 7, 8):
        if num_steps % splits or num_steps // splits < 4:
            continue
        enough = splits
        if num_programs * splits >= MANY_PROGRAMS:
            break
    return enough


def default_gemv(product: Product) -> GemvTiles:
    """Cut a GEMV so that each thread loads 16 bytes of one row, or of several short ones.

    Pairs of rows of 8-bit numbers go to tensor cores, 64 bytes of each thread at a time.
    """
    if product.element_bytes == 1 and product.scale_dims == 1 and product.num_inputs % 512 == 0:
        rows = 4 if product.gated else 8
        if product.num_outputs % rows == 0:
            return GemvTiles(rows=rows, block=512, num_warps=2, tensor_cores=True)
    wanted = 4096 // product.element_bytes
    block = min(_power_of_two(product.num_inputs), wanted)
    if product.scale_dims == 2:
        block = max(block, SCALE_BLOCK.value)
    rows = max(wanted // block, 1)
    while rows > 1 and product.num_outputs // rows < MANY_PROGRAMS:
        rows //= 2
    num_warps = min(max(rows * block * product.element_bytes // 512, 1), 8)
    return GemvTiles(rows=rows, block=block, num_warps=num_warps)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@cache
def shipped_table(gpu: str = "h200") -> TileTable:
    """Return the table that was measured on a kind of GPU."""
    folder = resources.files("quire_engine.kernels.gpu") / "tiles"
    return TileTable.parse((folder / f"{gpu}.json").read_text())
