from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from attention_cases import make_case, relative_error
from quire_engine.kernels.gpu.fresh_attention import (
    MAX_BATCH_TOKENS,
    MIN_TOKENS,
    FreshBatch,
    FreshShape,
    cut_fresh,
    fresh_attention,
    fresh_shapes,
    plan_fresh,
)
from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk


def side_by_side(
    lens: list[int], positions: list[int] | None = None, first_token: int = 0
) -> list[PrefillChunk]:
    return [
        PrefillChunk(
            row=index,
            first_token=first_token + sum(lens[:index]),
            num_tokens=length,
            position=positions[index] if positions else 0,
        )
        for index, length in enumerate(lens)
    ]


lengths = st.sampled_from([1, 1000, 1024, 1024, 1024, 2048, 2048, 2500, 3072, 4096, 9000])
runs = st.lists(
    st.tuples(lengths, st.sampled_from([0, 0, 0, 7]), st.integers(1, 20)), min_size=1, max_size=6
)


@given(
    runs,
    st.integers(0, 9),
    st.sampled_from([1000, 2048, 8192, 8448, 20_000]),
    st.integers(1, 40),
    st.data(),
)
def test_every_token_is_attended_from_once_in_shapes_that_are_planned(
    some_runs: list[tuple[int, int, int]],
    first_token: int,
    max_num_tokens: int,
    max_num_seqs: int,
    data: st.DataObject,
) -> None:
    lens = [length for length, _, count in some_runs for _ in range(count)]
    positions = [position for _, position, count in some_runs for _ in range(count)]
    chunks = side_by_side(lens, positions, first_token)
    wanted = fresh_shapes(max_num_tokens, max_num_seqs)
    refused = data.draw(st.sets(st.sampled_from(wanted), max_size=3)) if wanted else set()
    shapes = frozenset(wanted) - refused

    fresh, rest = cut_fresh(chunks, shapes)

    parts = [(batch.lines.start, batch.lines.stop) for batch in fresh]
    parts += [(chunk.first_token, chunk.first_token + chunk.num_tokens) for chunk in rest]
    parts.sort()
    assert parts[0][0] == first_token
    assert parts[-1][1] == first_token + sum(lens)
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    begun = {chunk.first_token: chunk for chunk in chunks if chunk.position == 0}
    for batch in fresh:
        assert batch.shape in shapes
        num_seqs, num_tokens = batch.shape
        starts = range(batch.lines.start, batch.lines.stop, num_tokens)
        assert all(start in begun for start in starts), "a fresh sequence sees no older keys"
        if num_seqs > 1:
            assert {begun[start].num_tokens for start in starts} == {num_tokens}
    origins = {chunk.row: chunk.first_token - chunk.position for chunk in chunks}
    for chunk in rest:
        assert chunk.first_token - chunk.position == origins[chunk.row], "positions go on counting"


def test_prompts_of_equal_length_are_taken_together() -> None:
    shapes = fresh_shapes(8448, 256)
    lens = [1024, 1024, 1024, 700, 2048, 2048, 1024]

    fresh, rest = cut_fresh(side_by_side(lens, first_token=6), shapes)

    assert fresh == [
        FreshBatch(first_token=6, shape=FreshShape(3, 1024)),
        FreshBatch(first_token=6 + 3772, shape=FreshShape(2, 2048)),
    ]
    assert [chunk.row for chunk in rest] == [3, 6]


def test_prompts_whose_end_is_left_over_are_taken_one_by_one() -> None:
    fresh, rest = cut_fresh(side_by_side([2500, 2500, 1500, 1500]), fresh_shapes(8192, 256))

    assert [batch.shape for batch in fresh] == [FreshShape(1, 2048)] * 2
    assert [(chunk.row, chunk.num_tokens, chunk.position) for chunk in rest] == [
        (0, 452, 2048),
        (1, 452, 2048),
        (2, 1500, 0),
        (3, 1500, 0),
    ]


def test_more_prompts_than_a_batch_takes_are_several_batches() -> None:
    fresh, rest = cut_fresh(side_by_side([1024] * 19), fresh_shapes(20_000, 256))

    assert [batch.shape.num_seqs for batch in fresh] == [8, 8, 3]
    assert rest == []


def test_a_batch_that_cannot_be_planned_is_taken_as_its_parts() -> None:
    shapes = [shape for shape in fresh_shapes(8192, 256) if shape.num_seqs == 1]

    fresh, rest = cut_fresh(side_by_side([2048, 2048, 1024, 1024]), shapes)

    assert [batch.shape for batch in fresh] == [FreshShape(1, 2048)] * 2
    assert [chunk.row for chunk in rest] == [2, 3]


@given(st.integers(1, 70_000), st.integers(1, 300))
def test_shapes_are_those_that_steps_may_have(max_num_tokens: int, max_num_seqs: int) -> None:
    shapes = fresh_shapes(max_num_tokens, max_num_seqs)

    assert len(set(shapes)) == len(shapes)
    for num_seqs, num_tokens in shapes:
        assert MIN_TOKENS <= num_seqs * num_tokens <= max_num_tokens
        assert num_seqs <= max_num_seqs
    batches = [shape for shape in shapes if shape.num_seqs > 1]
    assert len(batches) <= 12
    assert all(num_seqs * length <= MAX_BATCH_TOKENS for num_seqs, length in batches)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (8, 2), (7, 1)])
@pytest.mark.parametrize("num_seqs", [1, 3])
def test_fresh_attention_agrees_with_the_reference(
    num_heads: int, num_kv_heads: int, num_seqs: int
) -> None:
    before, length = 5, 37
    lens = [before] + [length] * num_seqs
    case = make_case(
        "cpu", seq_lens=lens, query_lens=lens, num_heads=num_heads, num_kv_heads=num_kv_heads
    )
    blocks = [case.block_table_RM[row].long().clamp(min=0) for row in case.rows]
    k_TND, v_TND = (
        torch.cat([cache[of].flatten(0, 1)[:n] for of, n in zip(blocks, lens, strict=True)])
        for cache in (case.k_cache, case.v_cache)
    )
    heads_TXD = torch.cat((case.q_THD, k_TND, v_TND), 1)
    out_THD = torch.full_like(case.q_THD, float("nan"))
    batch = FreshBatch(first_token=before, shape=FreshShape(num_seqs, length))

    fresh_attention(heads_TXD, out_THD, batch, num_heads=num_heads, scale=case.scale)

    assert relative_error(out_THD[before:], case.expected()[before:]) < 1e-5
    assert out_THD[:before].isnan().all()


def test_without_a_gpu_nothing_is_planned() -> None:
    assert not plan_fresh(
        8192,
        256,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
