import pytest
import torch

from quire_engine.kernels.gpu.norm import add_rms_norm, add_rms_norm_reference

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 80), (5, 576), (2, 4096)])
def test_norm_is_that_of_the_rounded_sum(
    device: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    weight, out = torch.randn(shape[1], device=device).to(dtype), torch.empty_like(x)
    expected, total = add_rms_norm_reference(x, residual, weight, 1e-5)

    add_rms_norm(x, residual, weight, 1e-5, out)

    # Triton's interpreter cuts where the GPU rounds.
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_norm_alone_leaves_its_input_alone_and_may_be_in_place(
    device: str, dtype: torch.dtype
) -> None:
    x = torch.randn(4, 96, device=device).to(dtype)
    weight, before, out = torch.ones(96, device=device).to(dtype), x.clone(), torch.empty_like(x)
    expected, _ = add_rms_norm_reference(x, None, weight, 1e-6)

    add_rms_norm(x, None, weight, 1e-6, out)
    assert torch.equal(x, before)
    torch.testing.assert_close(out, expected)

    add_rms_norm(x, None, weight, 1e-6, x)
    assert torch.equal(x, out)


def test_rows_may_be_strided_and_none_at_all(device: str) -> None:
    wide = torch.randn(4, 100, device=device)
    weight = torch.randn(64, device=device)
    expected, _ = add_rms_norm_reference(wide[:, :64], None, weight, 1e-6)

    add_rms_norm(wide[:, :64], None, weight, 1e-6, wide[:, :64])
    torch.testing.assert_close(wide[:, :64], expected)

    add_rms_norm(wide[:0, :64], None, weight, 1e-6, wide[:0, :64])
