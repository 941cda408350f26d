import pytest
import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear_gemv import GemvTiles, gemv, uses_tensor_cores
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.quantize import quantize_rows

CLOSE = {
    torch.float32: (1e-4, 1e-4),
    torch.float16: (5e-3, 5e-3),
    torch.bfloat16: (3e-2, 3e-2),
}
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
DOT_TYPES = [
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="interpreted dot"),
    ),
]


def make(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    numbers: torch.Tensor = torch.randn(shape, device=device) * shape[-1] ** -0.25
    return numbers.to(dtype)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: Norm | None = None,
    before: torch.Tensor | None = None,
    *,
    gated: bool = False,
) -> torch.Tensor:
    wide = x.float()
    if norm is not None:
        wide = functional.rms_norm(wide, wide.shape[-1:], norm.weight_E.float(), norm.eps)
    y = functional.linear(wide, weight.float(), None if bias is None else bias.float())
    if gated:
        gate, up = y.chunk(2, -1)
        y = functional.silu(gate) * up
    if before is not None:
        y = y + before.float()
    return y.to(x.dtype)


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    rtol, atol = CLOSE[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize(
    ("num_inputs", "num_rows", "tiles"),
    [
        (64, 24, GemvTiles(rows=1, block=32, num_warps=1)),
        (64, 24, GemvTiles(rows=4, block=64, num_warps=1)),
        (80, 22, GemvTiles(rows=4, block=32, num_warps=1)),
        (128, 24, GemvTiles(rows=4, block=64, num_warps=1, prefetch=64)),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("end", ["plain", "adds", "gated"])
def test_gemv_fuses_norm_bias_residual_and_gate(
    device: str,
    dtype: torch.dtype,
    num_inputs: int,
    num_rows: int,
    tiles: GemvTiles,
    has_bias: bool,
    has_norm: bool,
    end: str,
) -> None:
    torch.manual_seed(0)
    x, weight = make(device, dtype, 1, num_inputs), make(device, dtype, num_rows, num_inputs)
    bias = make(device, dtype, num_rows) if has_bias else None
    norm = Norm(make(device, dtype, num_inputs), 1e-5) if has_norm else None
    out = make(device, dtype, 1, num_rows // 2 if end == "gated" else num_rows)
    before = out.clone() if end == "adds" else None
    expected = reference(x, weight, bias, norm, before, gated=end == "gated")

    gemv(
        x[0],
        weight,
        out[0],
        tiles,
        bias_O=bias,
        norm=norm,
        adds=end == "adds",
        gated=end == "gated",
    )

    check(out, expected)


@pytest.mark.parametrize("dtype", DOT_TYPES)
@pytest.mark.parametrize("num_tokens", [5, 16])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("end", ["plain", "adds", "gated"])
def test_skinny_products_fuse_bias_residual_and_gate_over_any_splits(
    device: str,
    dtype: torch.dtype,
    num_tokens: int,
    splits: int,
    weight_first: bool,
    has_bias: bool,
    end: str,
) -> None:
    torch.manual_seed(0)
    num_inputs, num_rows = 192, 128
    tiles = SkinnyTiles(
        max_tokens=16,
        columns=32,
        depth=32,
        splits=splits,
        weight_first=weight_first,
        prefetch=64,
        num_stages=2,
    )
    x = make(device, dtype, num_tokens, num_inputs)
    weight = make(device, dtype, num_rows, num_inputs)
    bias = make(device, dtype, num_rows) if has_bias else None
    out = make(device, dtype, num_tokens, num_rows // 2 if end == "gated" else num_rows)
    before = out.clone() if end == "adds" else None
    expected = reference(x, weight, bias, None, before, gated=end == "gated")
    counters = torch.zeros(4, dtype=torch.int32, device=device)

    skinny(x, weight, out, tiles, counters, bias_O=bias, adds=end == "adds", gated=end == "gated")

    check(out, expected)
    assert not counters.any()


def quantize_weight(weight: torch.Tensor, *, per_block: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not per_block:
        scale = weight.abs().amax(1) / 448
        return (weight / scale[:, None]).to(torch.float8_e4m3fn), scale
    blocks = weight.view(-1, 128, weight.shape[1] // 128, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    numbers = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return numbers.flatten(2, 3).flatten(0, 1), scale


def dequantize(numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.dim() == 2:
        scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    else:
        scale = scale[:, None]
    return numbers.float() * scale


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("end", ["plain", "adds", "gated"])
def test_gemv_reads_8_bit_weights_through_their_scales(
    device: str, per_block: bool, end: str
) -> None:
    torch.manual_seed(0)
    numbers, scale = quantize_weight(torch.randn(256, 384, device=device), per_block=per_block)
    x = make(device, torch.bfloat16, 1, 384)
    norm = Norm(make(device, torch.bfloat16, 384), 1e-5)
    out = make(device, torch.bfloat16, 1, 128 if end == "gated" else 256)
    before = out.clone() if end == "adds" else None
    expected = reference(x, dequantize(numbers, scale), None, norm, before, gated=end == "gated")

    gemv(
        x[0],
        numbers,
        out[0],
        GemvTiles(rows=4, block=256, num_warps=1),
        scale=scale,
        norm=norm,
        adds=end == "adds",
        gated=end == "gated",
    )

    check(out, expected)


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize("end", ["plain", "adds", "gated"])
def test_skinny_products_scale_8_bit_numbers_of_both_sides(
    device: str, per_block: bool, weight_first: bool, end: str
) -> None:
    torch.manual_seed(0)
    numbers, scale = quantize_weight(torch.randn(256, 512, device=device), per_block=per_block)
    x = quantize_rows(torch.randn(5, 512, device=device), per_group=per_block)
    tiles = SkinnyTiles(
        max_tokens=16,
        columns=64,
        depth=128,
        splits=2,
        weight_first=weight_first,
        prefetch=128,
        num_stages=2,
    )
    wide = x.scale.repeat_interleave(128, 1) if per_block else x.scale[:, None]
    out = make(device, torch.bfloat16, 5, 128 if end == "gated" else 256)
    before = out.clone() if end == "adds" else None
    expected = reference(
        x.numbers.float() * wide,
        dequantize(numbers, scale),
        None,
        None,
        before,
        gated=end == "gated",
    )
    counters = torch.zeros(4, dtype=torch.int32, device=device)

    skinny(
        x.numbers,
        numbers,
        out,
        tiles,
        counters,
        x_scale=x.scale,
        scale=scale,
        adds=end == "adds",
        gated=end == "gated",
    )

    # fp8 tensor cores of Hopper add up 14 bits.
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.6)


@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_one_split_takes_any_shape_and_gives_a_row_the_same_bits_among_any_others(
    device: str, weight_first: bool, gated: bool
) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    tiles = SkinnyTiles(
        max_tokens=16, columns=32, depth=32, weight_first=weight_first, num_stages=2
    )
    x, weight = make(device, dtype, 35, 72), make(device, dtype, 88, 72)
    bias, out = make(device, dtype, 88), make(device, dtype, 35, 44 if gated else 88)

    skinny(x, weight, out, tiles, bias_O=bias, gated=gated)

    check(out, reference(x, weight, bias, gated=gated))
    for rows in (slice(0, 1), slice(17, 20), slice(30, 35)):
        alone = torch.empty_like(out[rows])
        skinny(x[rows], weight, alone, tiles, bias_O=bias, gated=gated)
        assert torch.equal(alone, out[rows])


@pytest.mark.parametrize("is_8_bit", [False, True])
@pytest.mark.parametrize(
    ("num_inputs", "tiles"),
    [
        (1024, GemvTiles(rows=8, block=512, num_warps=2, tensor_cores=True)),
        (1536, GemvTiles(rows=8, block=1024, num_warps=4, tensor_cores=True)),
        (2048, GemvTiles(rows=4, block=512, num_warps=1, tensor_cores=True, prefetch=1024)),
        (1024, GemvTiles(rows=2, block=512, num_warps=8, tensor_cores=True)),
    ],
)
@pytest.mark.parametrize("end", ["plain", "adds", "gated", "normed"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e5])
def test_gemv_on_tensor_cores_holds_any_x(
    device: str, is_8_bit: bool, num_inputs: int, tiles: GemvTiles, end: str, size: float
) -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(64, num_inputs, device=device) * num_inputs**-0.5, None
    if is_8_bit:
        weight, scale = quantize_weight(weight, per_block=False)
        wide = dequantize(weight, scale)
    else:
        weight = weight.bfloat16()
        wide = weight.float()
    x = make(device, torch.bfloat16, 1, num_inputs) * size
    x[0, 7] *= 300
    norm = Norm(make(device, torch.bfloat16, num_inputs), 1e-12) if end != "adds" else None
    bias = make(device, torch.bfloat16, 64)
    out = make(device, torch.bfloat16, 1, 32 if end == "gated" else 64)
    before = out.clone() if end == "adds" else None
    expected = reference(x, wide, bias, norm, before, gated=end == "gated")

    gemv(
        x[0],
        weight,
        out[0],
        tiles,
        scale=scale,
        bias_O=bias,
        norm=norm,
        adds=end == "adds",
        gated=end == "gated",
    )

    error = (out - expected).float().norm() / expected.float().norm()
    assert error < 1e-2


def test_tiles_go_to_tensor_cores_only_whole_and_in_words_of_16_bytes() -> None:
    def goes(rows: int, block: int, num_warps: int, dtype: torch.dtype, *shape: int) -> bool:
        tiles = GemvTiles(rows=rows, block=block, num_warps=num_warps, tensor_cores=True)
        weight = torch.empty(shape, dtype=dtype, device="meta")
        return uses_tensor_cores(tiles, weight, None)

    assert goes(8, 512, 2, torch.float8_e4m3fn, 64, 1024)
    assert goes(8, 512, 4, torch.bfloat16, 64, 1024)
    assert not goes(8, 512, 16, torch.bfloat16, 64, 1024), "8 bytes for each thread"
    assert not goes(8, 256, 1, torch.float8_e4m3fn, 64, 1024), "a warp holds two rows"
    assert not goes(8, 512, 2, torch.bfloat16, 60, 1024), "the last program has fewer rows"
    assert not goes(8, 512, 2, torch.bfloat16, 64, 1000), "rows do not end with a word"
    assert not goes(8, 512, 2, torch.float32, 64, 1024)
