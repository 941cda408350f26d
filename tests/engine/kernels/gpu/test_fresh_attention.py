import pytest
import torch
from hypothesis import given, strategies as st

from attention_cases import make_case, relative_error
from quire_engine.kernels.gpu.fresh_attention import (
    cut_fresh,
    fresh_attention,
    plan_fresh,
)
from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk


def chunk(first_token: int, num_tokens: int, position: int = 0) -> PrefillChunk:
    return PrefillChunk(row=3, first_token=first_token, num_tokens=num_tokens, position=position)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0, 0, 7])), max_size=8),
    st.integers(1, 12),
    st.integers(1, 30),
)
def test_every_token_is_attended_from_once(
    chunks: list[tuple[int, int]], multiple: int, min_tokens: int
) -> None:
    wanted, first = [], 0
    for num_tokens, position in chunks:
        wanted.append(chunk(first, num_tokens, position))
        first += num_tokens

    fresh, rest = cut_fresh(wanted, min_tokens=min_tokens, multiple=multiple)

    parts = [(part.first_token, part.num_tokens) for part in fresh]
    parts += [(part.first_token, part.num_tokens) for part in rest]
    lines = [line for start, count in parts for line in range(start, start + count)]
    assert sorted(lines) == list(range(first))
    starts = {one.first_token for one in wanted if one.position == 0}
    for part in fresh:
        assert part.first_token in starts, "a fresh chunk sees no older keys"
        assert part.num_tokens % multiple == 0
        assert part.num_tokens >= min_tokens
    moved = {one.first_token - one.position for one in wanted}
    assert {one.first_token - one.position for one in rest} <= moved, "positions go on counting"


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (8, 2), (7, 1)])
def test_fresh_attention_agrees_with_the_reference(num_heads: int, num_kv_heads: int) -> None:
    case = make_case(
        "cpu", seq_lens=[70], query_lens=[70], num_heads=num_heads, num_kv_heads=num_kv_heads
    )
    block_table = case.block_table_RM[case.rows[0]].long()
    k_CND = case.k_cache[block_table].flatten(0, 1)[:70]
    v_CND = case.v_cache[block_table].flatten(0, 1)[:70]
    heads_CXD = torch.cat((case.q_THD, k_CND, v_CND), 1)
    out_CHD = torch.full_like(case.q_THD, float("nan"))

    fresh_attention(heads_CXD, out_CHD, num_heads=num_heads, scale=case.scale)

    assert relative_error(out_CHD, case.expected()) < 1e-5


def test_without_a_gpu_nothing_is_planned() -> None:
    assert not plan_fresh(
        8192,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
