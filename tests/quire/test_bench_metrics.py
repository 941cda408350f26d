"""`quire bench metrics`: what is printed is what was measured."""

import gc

import pytest
from hypothesis import given, strategies as st

from quire.bench.metrics_cost import MetricsCost, Scrapes, measure_scrapes
from quire.bench.step_cost import StepCost, measure_steps
from quire_engine.config import EngineConfig


def step_cost(*ratios: float) -> StepCost:
    return StepCost(
        on_s=[0.02 * each for each in ratios], off_s=[0.02] * len(ratios), counting_share=0.0012
    )


async def test_a_router_with_many_replicas_is_scraped_over_http() -> None:
    few = await measure_scrapes(2, 2)
    many = await measure_scrapes(20, 2)

    assert 0 < few.num_bytes < many.num_bytes
    assert len(many.scrape_s) == len(many.scrape_cpu_s) == len(many.render_s) == 2
    assert min(*many.scrape_s, *many.scrape_cpu_s, *many.render_s) > 0
    assert gc.get_freeze_count() == 0


def test_the_ratio_is_that_of_the_pair_in_the_middle() -> None:
    cost = StepCost(on_s=[0.03, 0.9, 0.011], off_s=[0.02, 0.1, 0.01], counting_share=0.0)

    assert cost.ratios == pytest.approx([1.1, 1.5, 9.0])
    assert cost.ratio == pytest.approx(1.5)


def test_one_busy_moment_of_the_machine_moves_nothing() -> None:
    assert step_cost(*[1.001] * 50, 7.0).ratio == pytest.approx(1.001)
    assert step_cost(*[1.001] * 50, 7.0).ratio_range == pytest.approx((1.001, 1.001))


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=300))
def test_the_range_holds_the_ratio(ratios: list[float]) -> None:
    cost = step_cost(*ratios)

    low, high = cost.ratio_range

    assert low <= cost.ratio <= high


def test_the_range_of_a_hundred_pairs_is_that_of_the_sign_test() -> None:
    ratios = [1 + number / 1000 for number in range(100)]

    # The 40th and the 61st: fair coins leave 1.8% outside on either side.
    assert step_cost(*ratios).ratio_range == pytest.approx((ratios[39], ratios[60]))


def test_the_result_is_told_with_what_makes_it_certain() -> None:
    cost = MetricsCost(
        num_replicas=100,
        scrapes=Scrapes(
            scrape_s=[0.012, 0.011, 0.014],
            scrape_cpu_s=[0.008, 0.009, 0.007],
            render_s=[0.006],
            num_bytes=300_000,
        ),
        steps=step_cost(*[1.005] * 20),
        load=1.5,
    )

    assert cost.to_json()["step_ratio"] == cost.steps.ratio
    assert (
        "100 replicas: 12.0 ms, 6.0 ms of it to write 300 kB; "
        "at most 14.0 ms, and 9.0 ms of a processor\n"
    ) in str(cost)
    assert "ratio 1.0050, 95% certain within 1.0050 to 1.0050 (20 pairs)" in str(cost)
    assert "counting: 0.120%" in str(cost)
    assert "load of the machine: 1.5" in str(cost)


async def test_every_stretch_with_metrics_has_one_without() -> None:
    config = EngineConfig.from_flat({"device": "cpu", "max_model_len": 128})

    cost = await measure_steps(config, num_pairs=4, batch=2, output_len=3)

    assert len(cost.on_s) == len(cost.off_s) == 4
    assert min(*cost.on_s, *cost.off_s) > 0
    assert 0 < cost.counting_share < 1
