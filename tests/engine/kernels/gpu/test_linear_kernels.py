import pytest
import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear_gemv import GemvTiles, gemv
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.norm import Norm

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
    return (torch.randn(shape, device=device) * shape[-1] ** -0.25).to(dtype)


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


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("num_inputs", "num_rows", "tiles"),
    [
        (64, 24, GemvTiles(rows=1, block=32, num_warps=1)),
        (64, 24, GemvTiles(rows=4, block=64, num_warps=1)),
        (80, 22, GemvTiles(rows=4, block=32, num_warps=1)),
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
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
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
