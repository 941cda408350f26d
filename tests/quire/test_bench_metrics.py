import re

from quire.bench.metrics_cost import MetricsCost, measure_scrapes


async def test_a_router_with_many_replicas_is_scraped_over_http() -> None:
    few = await measure_scrapes(2, 2)
    many = await measure_scrapes(20, 2)

    assert 0 < few.num_bytes < many.num_bytes
    assert many.render_s > 0
    assert many.scrape_s > 0


def test_the_result_tells_the_ratio_of_the_steps() -> None:
    cost = MetricsCost(
        num_replicas=100,
        scrape_s=0.012,
        render_s=0.006,
        scrape_bytes=300_000,
        step_on_s=0.0201,
        step_off_s=0.02,
        counting_share=0.0012,
    )

    assert cost.to_json()["step_ratio"] == cost.step_ratio
    assert re.search(r"100 replicas: 12.0 ms, of which 6.0 ms to write 300 kB", str(cost))
    assert "ratio 1.0050" in str(cost)
    assert "counting: 0.120%" in str(cost)
