from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from quire_engine.kernels.gpu.attention_tiles import (
    HOPPER_SHARED_BYTES,
    AttentionTable,
    Heads,
    default_decode_tiles,
)
from quire_engine.kernels.gpu.step_tuner import StepTuner
from quire_engine.kernels.gpu.tune_decode import (
    MAX_PROGRAMS,
    DecodeChoice,
    loop_candidates,
    split_candidates,
    tune,
)

SMALL = Heads(num_heads=4, num_kv_heads=2, head_dim=16, kv_bytes=2)


def make_choice(device: str, table: AttentionTable) -> DecodeChoice:
    return DecodeChoice(
        table, SMALL, 8, device=torch.device(device), kv_dtype=torch.float16, num_processors=4
    )


@pytest.mark.parametrize("kv_bytes", [1, 2])
def test_candidates_differ_and_fit_the_gpu(kv_bytes: int) -> None:
    heads = Heads(num_heads=32, num_kv_heads=8, head_dim=128, kv_bytes=kv_bytes)
    default = default_decode_tiles(heads, 8)

    for found in (
        list(split_candidates(default)),
        list(loop_candidates(default, heads)),
    ):
        assert len(set(found)) == len(found) >= 6
        for tiles in found:
            assert tiles.programs_per_processor <= MAX_PROGRAMS
            staged = 2 * tiles.block_n * heads.line_bytes * tiles.num_stages
            assert staged <= HOPPER_SHARED_BYTES


def test_what_is_best_of_each_kind_comes_together(device: str) -> None:
    table = AttentionTable()
    choice = make_choice(device, table)
    compiled: list[int] = []

    def seconds(num_tokens: int) -> float:
        tiles = choice.get()
        wanted = (
            tiles.programs_per_processor == 2,
            tiles.min_split_keys == 128,
            tiles.block_n == 32,
            tiles.num_warps == 2,
        )
        return 10.0 - sum(wanted)

    def compile_steps(num_tokens: int, puts: Sequence[Callable[[], None]]) -> None:
        before = choice.get()
        for put in puts:
            put()
        assert choice.get() == before, "compiling chooses nothing"
        compiled.append(len(puts))

    tune(choice, 8, StepTuner(seconds, lambda _: None), compile_steps)

    best = table.decode(SMALL, 8)
    assert (best.programs_per_processor, best.min_split_keys) == (2, 128)
    assert (best.block_n, best.num_warps) == (32, 2)
    assert len(compiled) == 3


def test_attention_is_compared_with_the_reference(device: str) -> None:
    table = AttentionTable()
    choice = make_choice(device, table)

    assert 0 < choice.error(replace(choice.get(), min_split_keys=64)) < 1
    assert table.decode(SMALL, 8) == default_decode_tiles(SMALL, 8)


def test_out_of_time_nothing_is_compiled(device: str) -> None:
    def compile_steps(num_tokens: int, puts: Sequence[Callable[[], None]]) -> None:
        raise AssertionError("there is no time")

    table = AttentionTable()
    tuner = StepTuner(lambda _: 1.0, lambda _: None, stop_at=0.0)

    tune(make_choice(device, table), 8, tuner, compile_steps)

    assert table.decode(SMALL, 8) == default_decode_tiles(SMALL, 8)
