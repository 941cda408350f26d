from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from attention_cases import FP8, Case, make_case, relative_error
from quire_engine.kernels.gpu.attention_types import LOG2_E, NO_SCORE, NO_TOP
from quire_engine.kernels.gpu.prefill_attention import prefill_attention, prefill_tile_tokens
from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk, cut_prefill_tiles

ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def chunks_of(case: Case) -> list[PrefillChunk]:
    return [
        PrefillChunk(row=row, first_token=first, num_tokens=tokens, position=keys - tokens)
        for row, first, tokens, keys in zip(
            case.rows, case.query_starts, case.query_lens, case.seq_lens, strict=True
        )
    ]


def prefill(case: Case, window: int | None = None) -> torch.Tensor:
    _, num_heads, head_dim = case.q_THD.shape
    tile_tokens = prefill_tile_tokens(
        num_heads, case.k_cache.shape[2], head_dim, case.k_cache.element_size(), case.q_THD.device
    )
    tiles = torch.from_numpy(cut_prefill_tiles(chunks_of(case), tile_tokens))
    out_THD = torch.full_like(case.q_THD, float("nan"))
    prefill_attention(
        case.q_THD,
        case.k_cache,
        case.v_cache,
        case.block_table_RM,
        tiles.to(case.q_THD.device),
        out_THD,
        scale=case.scale,
        window=window,
        k_scale=case.k_scale,
        v_scale=case.v_scale,
    )
    return out_THD


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 7])
def test_prefill_equals_the_reference(device: str, head_dim: int, group: int) -> None:
    case = make_case(
        device,
        seq_lens=[1, 33, 130],
        query_lens=[1, 33, 60],
        num_heads=2 * group,
        num_kv_heads=2,
        head_dim=head_dim,
    )

    assert relative_error(prefill(case), case.expected()) < ERRORS[torch.float32]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_prefill_reads_cached_blocks_of_any_size(device: str, block_size: int) -> None:
    case = make_case(device, seq_lens=[17, 256, 300], query_lens=[2, 128, 1], block_size=block_size)

    assert relative_error(prefill(case), case.expected()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_fp8", [False, True])
def test_prefill_takes_half_precision_and_fp8(
    device: str, dtype: torch.dtype, is_fp8: bool
) -> None:
    case = make_case(
        device,
        seq_lens=[5, 200],
        query_lens=[5, 100],
        dtype=dtype,
        kv_dtype=FP8 if is_fp8 else None,
        head_dim=128,
    )

    assert relative_error(prefill(case), case.expected()) < ERRORS[dtype]


@pytest.mark.parametrize("window", [1, 16, 100, 1000])
def test_a_window_hides_older_keys(device: str, window: int) -> None:
    case = make_case(device, seq_lens=[3, 99, 300], query_lens=[3, 99, 250])

    assert relative_error(prefill(case, window), case.expected(window)) < 1e-5


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("top", [NO_TOP.value, -1000.0, 0.0, 1000.0])
def test_a_hidden_key_weighs_nothing_where_products_and_differences_are_fused(
    head_dim: int, top: float
) -> None:
    scale = np.float32(head_dim**-0.5 * LOG2_E)
    rounded = Fraction(float(np.float32(top) * scale))

    exponent = Fraction(NO_SCORE.value) * Fraction(float(scale)) - rounded

    assert exponent < -200, "2 to that is 0 in float32"


@pytest.mark.gpu  # numpy, which interprets the products, has other bits for other shapes
def test_a_chunk_has_the_bits_of_the_whole(device: str) -> None:
    whole = make_case(device, seq_lens=[300], query_lens=[300], dtype=torch.float16)

    out_THD = prefill(whole)

    for start, end in ((0, 101), (101, 102), (102, 300)):
        chunk = Case(
            **vars(whole)
            | {
                "q_THD": whole.q_THD[start:end],
                "seq_lens": [end],
                "query_lens": [end - start],
            }
        )
        assert torch.equal(prefill(chunk), out_THD[start:end])


def test_a_step_without_prompts_launches_nothing(device: str) -> None:
    case = make_case(device, seq_lens=[3], query_lens=[3])
    tiles = torch.from_numpy(cut_prefill_tiles([], 64))
    out_THD = torch.full_like(case.q_THD, 7.0)

    prefill_attention(
        case.q_THD, case.k_cache, case.v_cache, case.block_table_RM, tiles, out_THD, scale=1.0
    )

    assert torch.equal(out_THD, torch.full_like(case.q_THD, 7.0))


def test_tiles_with_most_keys_come_first() -> None:
    chunks = [
        PrefillChunk(row=4, first_token=0, num_tokens=70, position=0),
        PrefillChunk(row=2, first_token=70, num_tokens=10, position=1000),
    ]

    tiles = cut_prefill_tiles(chunks, 32)

    assert tiles.tolist() == [[70, 10, 2, 1000], [64, 6, 4, 64], [32, 32, 4, 32], [0, 32, 4, 0]]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), max_size=8), st.integers(1, 128)
)
def test_tiles_cover_every_token_once(lengths: list[tuple[int, int]], tile_tokens: int) -> None:
    chunks, first = [], 0
    for row, (num_tokens, position) in enumerate(lengths):
        chunks.append(
            PrefillChunk(row=row, first_token=first, num_tokens=num_tokens, position=position)
        )
        first += num_tokens

    tiles = cut_prefill_tiles(chunks, tile_tokens)

    tokens = [
        (row, position + index, token + index)
        for token, size, row, position in tiles.tolist()
        for index in range(size)
    ]
    assert sorted(tokens) == [
        (c.row, c.position + index, c.first_token + index)
        for c in chunks
        for index in range(c.num_tokens)
    ]
    assert np.all(np.diff(tiles[:, 1] + tiles[:, 3]) <= 0)
    assert tiles.dtype == np.int32
