import pytest
import torch

from attention_cases import relative_error
from quire_engine.kernels.gpu.fresh_attention import (
    MIN_TOKENS,
    MULTIPLE,
    fresh_attention,
    plan_fresh,
)


@pytest.mark.gpu
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(32, 8, 128), (14, 2, 64)])
def test_cudnn_agrees_with_the_reference(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    length = MIN_TOKENS + MULTIPLE
    heads_CXD = torch.randn(
        length, num_heads + 2 * num_kv_heads, head_dim, dtype=torch.bfloat16, device="cuda"
    )
    out_CHD = torch.full((length, num_heads, head_dim), float("nan"), device="cuda").bfloat16()
    expected_CHD = torch.empty(length, num_heads, head_dim)

    assert plan_fresh(
        length,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    fresh_attention(heads_CXD, out_CHD, num_heads=num_heads, scale=0.1)
    fresh_attention(heads_CXD.cpu().float(), expected_CHD, num_heads=num_heads, scale=0.1)

    assert relative_error(out_CHD.cpu(), expected_CHD) < 1e-2
