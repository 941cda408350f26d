"""Which tiles a product gets: measured ones from the shipped table, else what suits its shape.

`python -m quire_engine.kernels.gpu.tune_linear` measures on a GPU and writes the table. Nothing is
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

Tiles = GemvTiles | SkinnyTiles
KINDS: Mapping[str, type[Tiles]] = {"gemv": GemvTiles, "skinny": SkinnyTiles}

MANY_PROGRAMS = 264
"""Programs that keep the memory of a big GPU busy: two for each of 132 processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Everything that the choice of tiles may depend on."""

    num_inputs: int
    num_rows: int
    """Rows of the weight: outputs, or twice as many where gates are fused in."""
    gated: bool = False
    element_bytes: int = 2
    """Bytes of a weight."""

    @property
    def num_outputs(self) -> int:
        return self.num_rows // 2 if self.gated else self.num_rows


class TileTable:
    """Measured tiles, by product and the most tokens that they are for."""

    def __init__(self, entries: Sequence[tuple[Product, int, Tiles | None]] = ()) -> None:
        self._tiles: dict[Product, dict[int, Tiles | None]] = {}
        for product, max_tokens, tiles in entries:
            self._tiles.setdefault(product, {})[max_tokens] = tiles

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a table that `dump` wrote."""
        return cls([_parse_entry(values) for values in json.loads(text)["products"]])

    def choose(self, product: Product, num_tokens: int) -> Tiles | None:
        """Return the tiles for some rows of x; None: the vendor's library is faster."""
        measured = self._tiles.get(product)
        if measured is None:
            return default_tiles(product, num_tokens)
        sizes = [size for size in measured if size >= num_tokens]
        return measured[min(sizes)] if sizes else None

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


def _parse_entry(values: Mapping[str, Any]) -> tuple[Product, int, Tiles | None]:
    kind = values["kind"]
    tiles = None if kind is None else KINDS[kind](**values["tiles"])
    return Product(**values["product"]), int(values["max_tokens"]), tiles


def default_tiles(product: Product, num_tokens: int) -> Tiles | None:
    """Return tiles for a product that nobody measured: a GEMV for one row."""
    return default_gemv(product) if num_tokens == 1 else None


def default_gemv(product: Product) -> GemvTiles:
    """Cut a GEMV into tiles of about 2048 weights, and more where that leaves enough programs."""
    block = min(_power_of_two(product.num_inputs), 2048)
    rows = max(2048 // block, 1)
    while rows > 1 and product.num_outputs // rows < MANY_PROGRAMS:
        rows //= 2
    num_warps = min(max(rows * block // 256, 1), 8)
    return GemvTiles(rows=rows, block=block, num_warps=num_warps)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@cache
def shipped_table(gpu: str = "h200") -> TileTable:
    """Return the table that was measured on a kind of GPU."""
    folder = resources.files("quire_engine.kernels.gpu") / "tiles"
    return TileTable.parse((folder / f"{gpu}.json").read_text())
