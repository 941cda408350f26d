import pytest
import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear import GpuLinear, GpuMlp
from quire_engine.kernels.gpu.linear_gemv import GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.tables import Product, TileTable, default_gemv, shipped_table

HIDDEN, WIDTH = 64, 96
SKINNY = SkinnyTiles(max_tokens=16, columns=32, depth=32, splits=2, num_stages=2)


def make_table() -> TileTable:
    products = [
        Product(num_inputs=HIDDEN, num_rows=2 * WIDTH),
        Product(num_inputs=HIDDEN, num_rows=2 * WIDTH, gated=True),
        Product(num_inputs=WIDTH, num_rows=HIDDEN),
    ]
    entries: list[tuple[Product, int, GemvTiles | SkinnyTiles | None]] = []
    for product in products:
        entries.append((product, 1, GemvTiles(rows=4, block=64, num_warps=1)))
        if product.num_inputs % 64 == 0:
            entries.append((product, 8, SKINNY))
    return TileTable(entries)


@pytest.fixture
def dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float16


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 20])
@pytest.mark.parametrize("has_bias", [False, True])
def test_whatever_computes_it_an_mlp_is_the_same(
    device: str, dtype: torch.dtype, num_tokens: int, has_bias: bool
) -> None:
    torch.manual_seed(num_tokens)
    table = make_table()
    x = torch.randn(num_tokens, HIDDEN, device=device).to(dtype)
    gate_up, down = (
        torch.randn(2 * WIDTH, HIDDEN, device=device).to(dtype) * 0.2,
        torch.randn(HIDDEN, WIDTH, device=device).to(dtype) * 0.2,
    )
    biases = (
        torch.randn(weight.shape[0], device=device).to(dtype) if has_bias else None
        for weight in (gate_up, down)
    )
    up_bias, down_bias = biases
    norm = Norm(torch.rand(HIDDEN, device=device).to(dtype), 1e-5)
    mlp = GpuMlp(
        GpuLinear(gate_up, up_bias, table=table),
        GpuLinear(down, down_bias, table=table),
        width=WIDTH,
    )
    wide = functional.rms_norm(x.float(), (HIDDEN,), norm.weight_E.float(), norm.eps)
    bias = None if up_bias is None else up_bias.float()
    gate, up = functional.linear(wide, gate_up.float(), bias).chunk(2, -1)
    bias = None if down_bias is None else down_bias.float()
    expected = functional.linear(functional.silu(gate) * up, down.float(), bias)

    out = torch.empty_like(x)
    mlp(x, out, norm=norm)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)

    residual = x.clone()
    mlp.add_to(residual, norm=norm)
    torch.testing.assert_close(residual.float(), expected + x.float(), rtol=0.05, atol=0.05)


def test_a_table_serves_the_smallest_size_that_is_big_enough() -> None:
    table, product = make_table(), Product(num_inputs=HIDDEN, num_rows=2 * WIDTH)

    assert isinstance(table.choose(product, 1), GemvTiles)
    assert table.choose(product, 2) == table.choose(product, 8) == SKINNY
    assert table.choose(product, 9) is None


def test_products_that_nobody_measured_have_tiles_for_one_row_only() -> None:
    product = Product(num_inputs=576, num_rows=960)

    assert TileTable().choose(product, 1) == default_gemv(product)
    assert TileTable().choose(product, 2) is None


@pytest.mark.parametrize(
    ("num_inputs", "num_rows"), [(32, 8), (576, 192), (1024, 151936), (4096, 14336)]
)
def test_default_tiles_cover_any_shape(num_inputs: int, num_rows: int) -> None:
    tiles = default_gemv(Product(num_inputs=num_inputs, num_rows=num_rows))

    assert tiles.rows & (tiles.rows - 1) == 0
    assert tiles.block & (tiles.block - 1) == 0
    assert 1 <= tiles.num_warps <= 8


def test_every_tile_of_the_shipped_table_fits_its_product() -> None:
    for product, max_tokens, tiles in shipped_table().entries():
        assert tiles is None or max_tokens == 1 or isinstance(tiles, SkinnyTiles)
        if isinstance(tiles, SkinnyTiles):
            assert max_tokens <= tiles.max_tokens
            assert tiles.fits(product.num_inputs)
