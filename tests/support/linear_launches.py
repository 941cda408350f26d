"""Launches the kernels of linears for a Hopper GPU, to see what the compiler makes of them.

A program of its own, because triton is not interpreted in it: prints a list in JSON.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from hopper_compiler import Compiled, recorded_launches
from quire_engine.kernels.gpu.linear import GemvParts
from quire_engine.kernels.gpu.linear_gemv import GemvTiles, gemv
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.qkv import rotated_gemv
from quire_engine.kernels.gpu.quantize import quantize_rows
from quire_engine.kernels.gpu.rotary import CacheLayer
from quire_engine.kernels.gpu.tables import (
    MANY_ROWS_8_BIT,
    Product,
    default_gemv,
    default_skinny,
)

META = torch.device("meta")
HIDDEN, WIDTH = 4096, 14336


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def launch_gemv(dtype: torch.dtype, *, prefetch: int = 0, tensor_cores: bool = False) -> None:
    """Run the gated GEMV behind a norm, as an MLP of one row begins."""
    weight = _empty(2 * WIDTH, HIDDEN, dtype=dtype)
    scale = _empty(2 * WIDTH, dtype=torch.float32) if dtype.itemsize == 1 else None
    product = Product(
        num_inputs=HIDDEN,
        num_rows=2 * WIDTH,
        gated=True,
        element_bytes=dtype.itemsize,
    )
    norm = Norm(_empty(HIDDEN), 1e-5)
    tiles = default_gemv(product)
    if tensor_cores:
        tiles = GemvTiles(rows=4, block=512, num_warps=2, tensor_cores=True)
    gemv(
        _empty(HIDDEN),
        weight,
        _empty(WIDTH),
        replace(tiles, prefetch=prefetch),
        scale=scale,
        norm=norm,
        gated=True,
    )


def launch_rotated_gemv(dtype: torch.dtype) -> None:
    """Run the GEMV that turns queries and keys, as a layer of one row begins."""
    weight = _empty(6144, HIDDEN, dtype=dtype)
    scale = _empty(6144, dtype=torch.float32) if dtype.itemsize == 1 else None
    product = Product(num_inputs=HIDDEN, num_rows=6144, element_bytes=dtype.itemsize)
    cache = CacheLayer(_empty(8, 16, 8, 128), _empty(8, 16, 8, 128))
    rotated_gemv(
        _empty(HIDDEN),
        GemvParts(weight, default_gemv(product), scale=scale),
        Norm(_empty(HIDDEN), 1e-5),
        _empty(6144),
        _empty(1, dtype=torch.int32),
        _empty(1, dtype=torch.int64),
        _empty(8192, 128),
        cache,
    )


def launch_skinny(num_tokens: int, tiles: SkinnyTiles | None = None) -> None:
    """Run a product that is added to the residual, as an MLP of some rows ends."""
    tiles = tiles or default_skinny(Product(num_inputs=WIDTH, num_rows=HIDDEN), num_tokens)
    assert tiles is not None, "the shape has default tiles"
    counters = _empty(HIDDEN // 16, dtype=torch.int32)
    weight, out = _empty(HIDDEN, WIDTH), _empty(num_tokens, HIDDEN)
    skinny(_empty(num_tokens, WIDTH), weight, out, tiles, counters, adds=True)


def launch_blocks() -> None:
    """Quantize many rows by groups, and multiply them with a weight that has scales of blocks."""
    x = quantize_rows(_empty(1000, HIDDEN), norm=Norm(_empty(HIDDEN), 1e-5), per_group=True)
    weight = _empty(HIDDEN, HIDDEN, dtype=torch.float8_e4m3fn)
    scale = _empty(HIDDEN // 128, HIDDEN // 128, dtype=torch.float32)
    out = _empty(1000, HIDDEN)
    skinny(x.numbers, weight, out, MANY_ROWS_8_BIT, x_scale=x.scale, scale=scale)


def launches() -> Iterator[Compiled]:
    """Compile every kind of kernel once."""
    with recorded_launches() as found:
        launch_gemv(torch.bfloat16)
        launch_gemv(torch.bfloat16, prefetch=2048)
        launch_gemv(torch.float8_e4m3fn)
        launch_gemv(torch.bfloat16, tensor_cores=True)
        launch_gemv(torch.float8_e4m3fn, tensor_cores=True)
        launch_rotated_gemv(torch.bfloat16)
        launch_rotated_gemv(torch.float8_e4m3fn)
        launch_skinny(16)
        launch_skinny(64)
        launch_blocks()
    yield from found


if __name__ == "__main__":
    json.dump([asdict(launch) for launch in launches()], sys.stdout)
