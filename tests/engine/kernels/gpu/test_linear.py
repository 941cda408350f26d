import pytest
import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear import GpuLinear, GpuMlp
from quire_engine.kernels.gpu.linear_gemv import GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.quantize import Fp8Weight, quantize_weight
from quire_engine.kernels.gpu.tables import (
    Product,
    TileTable,
    default_gemv,
    default_skinny,
    shipped_table,
)

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
        entries.append((product, 1, GemvTiles(rows=32, block=64, num_warps=1)))
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
    assert table.choose(product, 65) is None
    assert table.row_counts() == [1, 8, 16, 32, 64, 65]


def test_products_that_nobody_measured_are_cut_by_their_shape() -> None:
    product = Product(num_inputs=4096, num_rows=6144)

    assert TileTable().choose(product, 1) == default_gemv(product)
    few = TileTable().choose(product, 7)
    assert isinstance(few, SkinnyTiles)
    assert few.max_tokens == 16
    assert TileTable().choose(product, 65) is None


@pytest.mark.parametrize("num_rows", [192, 960, 4096, 6144, 28672, 128256, 151936])
@pytest.mark.parametrize("num_inputs", [576, 1024, 3072, 4096, 14336, 28672])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("element_bytes", "scale_dims"), [(2, 0), (1, 1), (1, 2)])
def test_default_tiles_of_few_rows_are_whole_and_fit_shared_memory(
    num_rows: int, num_inputs: int, gated: bool, element_bytes: int, scale_dims: int
) -> None:
    product = Product(
        num_inputs=num_inputs,
        num_rows=num_rows,
        gated=gated,
        element_bytes=element_bytes,
        scale_dims=scale_dims,
    )

    for num_tokens in (2, 16, 17, 33, 64):
        tiles = default_skinny(product, num_tokens)
        if tiles is None:
            assert num_inputs % 128 or product.num_outputs % 16
            continue
        rows = tiles.columns * (1 + gated) + tiles.max_tokens
        assert tiles.max_tokens >= num_tokens
        assert tiles.fits(num_inputs)
        assert product.num_outputs % tiles.columns == 0
        assert rows * tiles.depth * element_bytes * tiles.num_stages <= 150_000


def quantize(weight: torch.Tensor, kind: str) -> Fp8Weight:
    if kind == "row":
        return quantize_weight(weight)
    numbers = weight.to(torch.float8_e4m3fn)
    if kind == "block":
        shape = (weight.shape[0] // 128, weight.shape[1] // 128)
        scale = torch.rand(shape, device=weight.device) + 0.5
        return Fp8Weight(numbers, scale)
    ones = torch.ones(weight.shape[0], device=weight.device)
    return Fp8Weight(numbers, ones, torch.tensor([0.02], device=weight.device))


def dequantize(weight: Fp8Weight) -> torch.Tensor:
    scale = weight.scale
    if weight.per_block:
        return weight.numbers.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return weight.numbers.float() * scale[:, None]


@pytest.mark.parametrize("kind", ["row", "block", "static"])
@pytest.mark.parametrize("num_tokens", [1, 3, 66])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_quantized_linear_is_close_to_its_weight(
    device: str, kind: str, num_tokens: int, batch_invariant: bool
) -> None:
    torch.manual_seed(0)
    weight = quantize(torch.randn(256, 256, device=device), kind)
    few_programs = TileTable(
        [
            (
                Product(
                    num_inputs=256,
                    num_rows=256,
                    gated=gated,
                    element_bytes=1,
                    scale_dims=weight.scale.dim(),
                ),
                1,
                GemvTiles(rows=64, block=256, num_warps=4),
            )
            for gated in (False, True)
        ]
    )
    linear = GpuLinear(weight, batch_invariant=batch_invariant, table=few_programs)
    x = torch.randn(num_tokens, 256, device=device).to(torch.bfloat16)
    y = functional.linear(x.float(), dequantize(weight))
    gate, up = y.chunk(2, -1)

    out = torch.zeros(num_tokens, 256, device=device, dtype=torch.bfloat16)
    linear(x, out)
    check(out, y)

    linear.add_to(x, out)
    check(out, 2 * y)

    half = torch.zeros(num_tokens, 128, device=device, dtype=torch.bfloat16)
    linear.gated(x, half)
    check(half, functional.silu(gate) * up)


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # Both factors have three bits of mantissa, and the interpreter loses carries when it rounds.
    error = (ours.float() - theirs).square().mean() / theirs.square().mean()
    assert error.sqrt() < (0.05 if ours.is_cuda else 0.2)


def test_a_batch_invariant_linear_gives_a_row_the_same_bits_among_any_others(
    device: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    linear = GpuLinear(torch.randn(80, 96, device=device).to(dtype), batch_invariant=True)
    x = torch.randn(70, 96, device=device).to(dtype)
    norm = Norm(torch.rand(96, device=device).to(dtype), 1e-5)
    together, alone = (torch.empty(n, 80, device=device, dtype=dtype) for n in (70, 1))
    linear(x, together, norm=norm)

    for row in (0, 1, 63, 69):
        linear(x[row : row + 1], alone, norm=norm)
        assert torch.equal(alone[0], together[row])


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
