import pytest
import torch

from quire_engine.kernels.gpu.activation import silu_mul, silu_mul_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (3, 1000), (2, 1536), (0, 64)])
def test_gate_opens_up(device: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape[0], 2 * shape[1], device=device) * 4).to(dtype)
    out = torch.empty(shape, device=device, dtype=dtype)

    silu_mul(gate_up, out)

    torch.testing.assert_close(out, silu_mul_reference(gate_up))
