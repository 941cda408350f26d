"""Linears' tiles: which are worth a measurement, and whether they compute the right numbers.

`step_tuner.py` says which of them make a step fastest.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile

import torch
from triton.runtime.errors import OutOfResources

from quire_engine.kernels.gpu.linear import GpuLinear
from quire_engine.kernels.gpu.linear_gemv import WARP_BYTES, GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.prefetch import LINE_BYTES
from quire_engine.kernels.gpu.quantize import Fp8Weight
from quire_engine.kernels.gpu.tables import Product, Tiles, TileTable, default_tiles
from quire_engine.model.fp8 import BLOCK, FP8
from quire_engine.model.spec import ModelSpec

MAX_STAGED_BYTES = 200_000
MAX_ERROR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear of a model, with what serving fuses into it."""

    name: str
    product: Product
    has_norm: bool = False
    adds: bool = False


def linears_of(spec: ModelSpec, scale_dims: int) -> list[Linear]:
    """List the linears of a model's layer, and its head, which is never quantized."""
    hidden, width = spec.hidden_size, spec.intermediate_size

    def product(num_inputs: int, num_rows: int, *, gated: bool = False) -> Product:
        return Product(
            num_inputs=num_inputs,
            num_rows=num_rows,
            gated=gated,
            element_bytes=1 if scale_dims else 2,
            scale_dims=scale_dims,
        )

    head = Product(num_inputs=hidden, num_rows=spec.vocab_size)
    return [
        Linear(name="qkv", product=product(hidden, spec.q_size + 2 * spec.kv_size), has_norm=True),
        Linear(name="out", product=product(spec.q_size, hidden), adds=True),
        Linear(name="gate_up", product=product(hidden, 2 * width, gated=True), has_norm=True),
        Linear(name="down", product=product(width, hidden), adds=True),
        Linear(name="head", product=head, has_norm=True),
    ]


def candidates(
    product: Product, max_tokens: int, *, limit: int, current: Tiles | None = None
) -> list[Tiles]:
    """List tiles worth a measurement, the same each time.

    They are the default, `current` with more or less fetched ahead, and a random choice.
    """
    default = default_tiles(product, max_tokens)
    found = (
        _gemv_candidates(product) if max_tokens == 1 else _skinny_candidates(product, max_tokens)
    )
    others: list[Tiles] = list(found)
    random.Random(0).shuffle(others)
    first = [default] if default is not None else []
    near = [] if current is None else _prefetching(product, current)
    return list(dict.fromkeys((*first, *near, *others[:limit])))


def _prefetching(product: Product, tiles: Tiles) -> Iterator[Tiles]:
    """Yield tiles that fetch more or less ahead: each a power of two up to all there is."""
    if isinstance(tiles, GemvTiles):
        most = product.num_inputs - tiles.block
    else:
        most = product.num_inputs // tiles.splits
    yield replace(tiles, prefetch=0)
    smallest = LINE_BYTES.value // product.element_bytes
    for prefetch in takewhile(lambda size: size <= most, (smallest << n for n in count())):
        yield replace(tiles, prefetch=prefetch)


def _gemv_candidates(product: Product) -> Iterator[Tiles]:
    if product.element_bytes <= 2 and product.scale_dims < 2:
        yield from _tensor_candidates(product)
    yield from _number_candidates(product)


def _number_candidates(product: Product) -> Iterator[Tiles]:
    widest = 1 << (product.num_inputs - 1).bit_length()
    blocks = (256, 512, 1024, 2048, 4096, 16384)
    for rows, block, warps in itertools.product((1, 2, 4, 8, 16), blocks, (2, 4, 8, 16)):
        per_thread = rows * block * (2 if product.gated else 1) // (32 * warps)
        if block <= widest and 8 <= per_thread <= 128 and product.num_inputs // block <= 32:
            yield from _fetching_much(product, GemvTiles(rows=rows, block=block, num_warps=warps))


def _tensor_candidates(product: Product) -> Iterator[Tiles]:
    widest = 1 << (product.num_inputs - 1).bit_length()
    blocks = (256, 512, 1024, 2048, 4096)
    for rows, block, warps in itertools.product((2, 4, 8, 16, 32), blocks, (1, 2, 4, 8, 16)):
        row_bytes = block * product.element_bytes
        per_thread = rows * row_bytes * (2 if product.gated else 1) // (32 * warps)
        is_busy = product.num_outputs // rows >= 128
        if is_busy and block <= widest and row_bytes >= WARP_BYTES and 32 <= per_thread <= 128:
            tiles = GemvTiles(rows=rows, block=block, num_warps=warps, tensor_cores=True)
            yield from _fetching_much(product, tiles)


def _fetching_much(product: Product, tiles: GemvTiles) -> Iterator[GemvTiles]:
    """Yield tiles that fetch nothing ahead, and as much as they can."""
    yield tiles
    left = product.num_inputs - tiles.block
    if left * product.element_bytes >= LINE_BYTES.value:
        yield replace(tiles, prefetch=1 << (left.bit_length() - 1))


def _skinny_candidates(product: Product, max_tokens: int) -> Iterator[Tiles]:
    height = max(16, max_tokens)
    depths = (128,) if product.scale_dims == 2 else (64, 128, 256)
    for columns, depth, splits, first, stages, prefetch in itertools.product(
        (16, 32, 64, 128), depths, (1, 2, 4, 7, 8), (False, True), (3, 4, 5, 6), (0, 512, 2048)
    ):
        rows = columns * (2 if product.gated else 1) + height
        staged = rows * depth * product.element_bytes * stages
        num_programs = product.num_outputs // columns * splits
        is_whole = product.num_inputs % (splits * depth) == 0 and product.num_outputs % columns == 0
        has_steps = product.num_inputs // (splits * depth) >= 4
        is_busy = num_programs >= 128 and (splits == 1 or num_programs <= 1200)
        if first and columns < 64:
            continue
        if prefetch > product.num_inputs // splits * product.element_bytes:
            continue
        if is_whole and has_steps and is_busy and 24_000 <= staged <= MAX_STAGED_BYTES:
            yield SkinnyTiles(
                max_tokens=height,
                columns=columns,
                depth=depth,
                splits=splits,
                weight_first=first,
                prefetch=prefetch // product.element_bytes,
                num_stages=stages,
            )


class Trial:
    """The product of one linear with a random weight, as serving computes it."""

    def __init__(
        self, linear: Linear, num_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        product = linear.product
        self._linear, self._num_tokens = linear, num_tokens
        self._weight = _random_weight(product, device, dtype)
        self._x = torch.randn(num_tokens, product.num_inputs, device=device).to(dtype)
        self._norm = None
        if linear.has_norm:
            weight = torch.ones(product.num_inputs, device=device, dtype=dtype)
            self._norm = Norm(weight, 1e-5)
        self._out = torch.zeros(num_tokens, product.num_outputs, device=device, dtype=dtype)

    def result(self, tiles: Tiles | None) -> torch.Tensor:
        """Return the product through some tiles; None: through the library."""
        table = TileTable([(self._linear.product, self._num_tokens, tiles)])
        linear = GpuLinear(self._weight, table=table)
        self._out.zero_()
        if self._linear.adds:
            linear.add_to(self._x, self._out)
        elif self._linear.product.gated:
            linear.gated(self._x, self._out, norm=self._norm)
        else:
            linear(self._x, self._out, norm=self._norm)
        return self._out.float()


def _random_weight(
    product: Product, device: torch.device, dtype: torch.dtype
) -> torch.Tensor | Fp8Weight:
    shape = (product.num_rows, product.num_inputs)
    weight = torch.randn(shape, device=device, dtype=dtype)
    if not product.scale_dims:
        return weight
    scale_shape = shape[:1] if product.scale_dims == 1 else tuple(n // BLOCK for n in shape)
    return Fp8Weight(weight.to(FP8), torch.ones(scale_shape, device=device))


class LinearChoice:
    """What the table says for a linear and some rows; None: the vendor's library."""

    def __init__(
        self,
        table: TileTable,
        linear: Linear,
        num_tokens: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = linear.name
        self._table, self._linear, self._num_tokens = table, linear, num_tokens
        self._device, self._dtype = device, dtype

    def get(self) -> Tiles | None:
        return self._table.choose(self._linear.product, self._num_tokens)

    def put(self, tiles: Tiles | None) -> None:
        self._table.put(self._linear.product, self._num_tokens, tiles)

    def error(self, tiles: Tiles | None) -> float:
        """Compare with the library."""
        if tiles is None:
            return 0.0
        trial = Trial(self._linear, self._num_tokens, self._device, self._dtype)
        expected = trial.result(None).clone()
        return float((trial.result(tiles) - expected).norm() / expected.norm()) / MAX_ERROR


def compile_one(linear: Linear, num_tokens: int, tiles: Tiles) -> None:
    """Compile a kernel into the cache on disk, by running it once."""
    try:
        Trial(linear, num_tokens, torch.device("cuda"), torch.bfloat16).result(tiles)
    except OutOfResources:
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
