from dataclasses import replace

import pytest
import torch

from quire_engine.kernels.gpu.linear_gemv import GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.step_tuner import StepTuner
from quire_engine.kernels.gpu.tables import Product, Tiles, TileTable, default_tiles
from quire_engine.kernels.gpu.tune_linear import Linear, LinearChoice, candidates, linears_of
from quire_engine.model.families import read_spec

GEMV = GemvTiles(rows=2, block=64, num_warps=1)
OTHER = GemvTiles(rows=4, block=64, num_warps=1)


LINEAR = Linear(
    name="gate_up", product=Product(num_inputs=64, num_rows=32, gated=True), has_norm=True
)


def make_choice(device: str, table: TileTable) -> LinearChoice:
    return LinearChoice(table, LINEAR, 1, device=torch.device(device), dtype=torch.float32)


def tune(choice: LinearChoice, seconds: dict[Tiles | None, float]) -> None:
    """Tune with steps that take as long as the tiles in the table say."""
    StepTuner(lambda _: seconds[choice.get()], lambda _: None).tune(choice, 1, seconds)


def test_the_fastest_tiles_win(device: str) -> None:
    table = TileTable([(LINEAR.product, 1, GEMV)])

    tune(make_choice(device, table), {None: 3.0, GEMV: 2.0, OTHER: 1.0})

    assert table.choose(LINEAR.product, 1) == OTHER


def test_the_library_wins_where_nothing_is_faster(device: str) -> None:
    table = TileTable([(LINEAR.product, 1, GEMV)])

    tune(make_choice(device, table), {None: 1.0, GEMV: 2.0, OTHER: 2.0})

    assert table.choose(LINEAR.product, 1) is None


def test_tiles_are_compared_with_the_library(device: str) -> None:
    choice = make_choice(device, TileTable())

    assert choice.error(None) == 0
    assert 0 <= choice.error(OTHER) < 1e-3


@pytest.mark.parametrize("max_tokens", [1, 8, 64])
@pytest.mark.parametrize(("element_bytes", "scale_dims"), [(2, 0), (1, 1), (1, 2)])
def test_candidates_begin_with_the_default_and_are_the_same_each_time(
    max_tokens: int, element_bytes: int, scale_dims: int
) -> None:
    product = Product(
        num_inputs=4096, num_rows=6144, element_bytes=element_bytes, scale_dims=scale_dims
    )
    found = candidates(product, max_tokens, limit=20)

    assert found[0] == default_tiles(product, max_tokens)
    assert found == candidates(product, max_tokens, limit=20)
    assert len(set(map(repr, found))) == len(found) > 10
    for tiles in found:
        if isinstance(tiles, SkinnyTiles):
            assert tiles.fits(4096)
            assert 6144 % tiles.columns == 0
        else:
            assert tiles.block + tiles.prefetch <= 4096


@pytest.mark.parametrize(
    ("num_tokens", "current", "most"),
    [
        (1, GemvTiles(rows=8, block=1024, num_warps=2), 2048),
        (8, SkinnyTiles(max_tokens=16, columns=64, depth=128, splits=4), 1024),
    ],
)
def test_what_the_table_says_is_tried_with_all_there_is_to_fetch_ahead(
    num_tokens: int, current: GemvTiles | SkinnyTiles, most: int
) -> None:
    product = Product(num_inputs=4096, num_rows=4096)

    found = candidates(product, num_tokens, limit=0, current=current)

    fetched = {tiles.prefetch for tiles in found if replace(tiles, prefetch=0) == current}
    assert fetched == {0, *(1 << n for n in range(6, most.bit_length()))}


@pytest.mark.parametrize(
    ("scale_dims", "ways"), [(0, {True, False}), (1, {True, False}), (2, {False})]
)
def test_a_row_is_tried_on_tensor_cores_and_number_by_number(
    scale_dims: int, ways: set[bool]
) -> None:
    product = Product(
        num_inputs=4096,
        num_rows=6144,
        element_bytes=1 if scale_dims else 2,
        scale_dims=scale_dims,
    )

    found = candidates(product, 1, limit=10_000)

    assert {tiles.tensor_cores for tiles in found if isinstance(tiles, GemvTiles)} == ways


def test_linears_are_those_of_the_model() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 640,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }

    shapes = {
        linear.name: (linear.product.num_rows, linear.product.num_inputs)
        for linear in linears_of(read_spec(config), 0)
    }

    assert shapes == {
        "qkv": (384, 256),
        "out": (256, 256),
        "gate_up": (1024, 256),
        "down": (256, 512),
        "head": (640, 256),
    }


def test_a_table_is_read_as_it_was_written() -> None:
    product = Product(num_inputs=64, num_rows=32)
    skinny = SkinnyTiles(max_tokens=16, columns=32, depth=32)
    entries: list[tuple[Product, int, Tiles | None]] = [
        (product, 1, GEMV),
        (product, 16, skinny),
        (product, 64, None),
    ]

    assert list(TileTable.parse(TileTable(entries).dump()).entries()) == entries
