import pytest
import torch

from attention_cases import relative_error
from quire_engine.kernels.gpu.fresh_attention import (
    FreshBatch,
    FreshShape,
    fresh_attention,
    fresh_shapes,
    plan_fresh,
)

MAX_NUM_TOKENS, MAX_NUM_SEQS = 4200, 16


@pytest.mark.gpu
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(32, 8, 128), (14, 2, 64)])
@pytest.mark.parametrize("shape", [FreshShape(1, 3072), FreshShape(3, 1024), FreshShape(2, 2048)])
def test_cudnn_agrees_with_the_reference(
    shape: FreshShape, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    num_all_heads = num_heads + 2 * num_kv_heads
    heads_TXD = torch.randn(
        MAX_NUM_TOKENS, num_all_heads, head_dim, dtype=torch.bfloat16, device="cuda"
    )
    out_THD = torch.full((MAX_NUM_TOKENS, num_heads, head_dim), float("nan"), device="cuda")
    out_THD = out_THD.bfloat16()
    expected_THD = torch.empty(MAX_NUM_TOKENS, num_heads, head_dim)
    batch = FreshBatch(first_token=5, shape=shape)

    shapes = plan_fresh(
        MAX_NUM_TOKENS,
        MAX_NUM_SEQS,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    fresh_attention(heads_TXD, out_THD, batch, num_heads=num_heads, scale=0.1)
    fresh_attention(heads_TXD.cpu().float(), expected_THD, batch, num_heads=num_heads, scale=0.1)

    assert shapes == set(fresh_shapes(MAX_NUM_TOKENS, MAX_NUM_SEQS))
    assert relative_error(out_THD[batch.lines].cpu(), expected_THD[batch.lines]) < 1e-2
    assert out_THD[: batch.lines.start].isnan().all()
    assert out_THD[batch.lines.stop :].isnan().all()
