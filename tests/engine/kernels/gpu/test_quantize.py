import pytest
import torch

from quire_engine.kernels.gpu.norm import Norm, add_rms_norm_reference
from quire_engine.kernels.gpu.quantize import Fp8Rows, quantize_rows, quantize_rows_reference


def check(device: str, ours: Fp8Rows, theirs: Fp8Rows) -> None:
    torch.testing.assert_close(ours.scale, theirs.scale, rtol=1e-4, atol=0)
    # The interpreter loses the carry where rounding moves to the next power of two.
    rtol = 0.13 if device == "cuda" else 0.51
    torch.testing.assert_close(ours.numbers.float(), theirs.numbers.float(), rtol=rtol, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 128), (3, 384), (2, 4096), (5, 80), (0, 128)])
def test_a_row_is_scaled_by_its_largest_number(device: str, shape: tuple[int, int]) -> None:
    x = torch.randn(shape, device=device).to(torch.bfloat16)

    check(device, quantize_rows(x), quantize_rows_reference(x))


@pytest.mark.parametrize("width", [128, 384, 2048])
def test_each_group_has_its_own_scale(device: str, width: int) -> None:
    x = torch.randn(3, width, device=device).to(torch.bfloat16)
    x[1, :128] = 0

    ours = quantize_rows(x, per_group=True)

    assert ours.scale.shape == (3, width // 128)
    check(device, ours, quantize_rows_reference(x, per_group=True))


def test_norm_comes_first(device: str) -> None:
    x = torch.randn(4, 96, device=device)
    weight = torch.rand(96, device=device)
    normed, _ = add_rms_norm_reference(x, None, weight, 1e-5)

    check(device, quantize_rows(x, norm=Norm(weight, 1e-5)), quantize_rows_reference(normed))


def test_a_static_scale_clamps(device: str) -> None:
    x = torch.tensor([[1.0, -3.0, 600.0, -9000.0]], device=device)

    ours = quantize_rows(x, static_scale=torch.tensor([2.0], device=device))

    assert ours.scale.tolist() == [2.0]
    assert ours.numbers.float().tolist() == [[0.5, -1.5, 288.0, -448.0]]
