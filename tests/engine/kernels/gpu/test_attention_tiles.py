from dataclasses import replace

import pytest

from quire_engine.kernels.gpu.attention_tiles import (
    HOPPER_SHARED_BYTES,
    PREFILL_CANDIDATES,
    AttentionTable,
    DecodeTiles,
    Heads,
    default_decode_tiles,
    default_prefill_tiles,
    shipped_attention_table,
)

LLAMA = Heads(num_heads=32, num_kv_heads=8, head_dim=128, kv_bytes=2)
MEASURED = DecodeTiles(
    block_n=32,
    num_warps=1,
    num_stages=5,
    looks_ahead=True,
    programs_per_processor=7,
    min_split_keys=64,
)


def test_a_large_batch_runs_as_the_measured_probe() -> None:
    tiles = default_decode_tiles(LLAMA, 256)

    assert (tiles.block_n, tiles.num_warps, tiles.num_stages) == (64, 2, 3)
    assert not tiles.looks_ahead


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("kv_bytes", [1, 2, 4])
@pytest.mark.parametrize("shared_bytes", [HOPPER_SHARED_BYTES, 101376])
def test_prefill_tiles_fit_into_shared_memory(
    head_dim: int, kv_bytes: int, shared_bytes: int
) -> None:
    heads = Heads(num_heads=28, num_kv_heads=4, head_dim=head_dim, kv_bytes=kv_bytes)

    tiles = default_prefill_tiles(heads, shared_bytes)

    assert tiles.shared_bytes(heads) <= shared_bytes or tiles == PREFILL_CANDIDATES[-1]


def test_a_measured_choice_holds_up_to_its_batch_size() -> None:
    table = AttentionTable([(LLAMA, 8, MEASURED)])

    assert table.decode(LLAMA, 3) == MEASURED
    assert table.decode(LLAMA, 9) == default_decode_tiles(LLAMA, 9)


def test_a_new_choice_replaces_that_of_its_batch_size_alone() -> None:
    other = replace(MEASURED, min_split_keys=1024)
    table = AttentionTable([(LLAMA, 8, MEASURED), (LLAMA, 16, MEASURED)])

    table.put_decode(LLAMA, 16, other)
    table.put_prefill(LLAMA, PREFILL_CANDIDATES[1])

    assert (table.decode(LLAMA, 8), table.decode(LLAMA, 9)) == (MEASURED, other)
    assert AttentionTable.parse(table.dump()).decode(LLAMA, 16) == other
    assert table.prefill(LLAMA) == PREFILL_CANDIDATES[1]


def test_measured_prefill_tiles_are_not_used_where_they_do_not_fit() -> None:
    table = AttentionTable(prefill=[(LLAMA, PREFILL_CANDIDATES[0])])

    assert table.prefill(LLAMA) == PREFILL_CANDIDATES[0]
    assert table.prefill(LLAMA, 101376).shared_bytes(LLAMA) <= 101376


def test_a_table_is_read_as_it_was_written() -> None:
    table = AttentionTable([(LLAMA, 8, MEASURED)], [(LLAMA, PREFILL_CANDIDATES[2])])

    again = AttentionTable.parse(table.dump())

    assert again.decode(LLAMA, 8) == MEASURED
    assert again.prefill(LLAMA) == PREFILL_CANDIDATES[2]


def test_the_shipped_table_can_be_read() -> None:
    assert shipped_attention_table().prefill(LLAMA).block_m >= 16
