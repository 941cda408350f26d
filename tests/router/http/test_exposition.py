import math
from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Summary,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_router.exposition import exposition
from quire_router.series import Series, SeriesMetric

texts = st.text(max_size=20)
numbers = st.one_of(st.floats(), st.integers(-(10**12), 10**12))


@given(value=numbers, labels=st.tuples(texts, texts), help_=texts)
def test_what_is_written_is_what_the_client_library_writes(
    value: float, labels: tuple[str, str], help_: str
) -> None:
    registry = CollectorRegistry()
    Gauge("g_seconds", help_, ("zone", "area"), registry=registry).labels(*labels).set(value)

    assert exposition(registry) == generate_latest(registry)


def test_every_kind_of_metric_is_written_alike() -> None:
    registry = CollectorRegistry()
    Counter("c_total", "C.", ("a",), registry=registry).labels("x").inc(2_500_000)
    Histogram("h_seconds", "H.", ("a",), registry=registry).labels("y").observe(0.3)
    Summary("s_seconds", "S.", registry=registry).observe(1.5)
    Info("i", "I.", registry=registry).info({"version": '1"2\\3\n4'})
    Gauge("nothing", "No series.", ("a",), registry=registry)

    assert exposition(registry) == generate_latest(registry)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e6, 123456789.5, 1e-9, -0.0])
def test_odd_numbers_are_written_alike(value: float) -> None:
    class Odd(Collector):
        def collect(self) -> Iterable[Metric]:
            yield GaugeMetricFamily("odd", "Odd.", value=value)

    registry = CollectorRegistry()
    registry.register(Odd())

    assert exposition(registry) == generate_latest(registry)


@given(st.lists(st.tuples(texts, texts, numbers), max_size=5))
def test_a_family_of_kept_series_is_written_alike(rows: list[tuple[str, str, float]]) -> None:
    series = [Series.of("kept_total", {"zone": zone, "area": area}) for zone, area, _ in rows]
    values = [value for _, _, value in rows]

    class Kept(Collector):
        def collect(self) -> Iterable[Metric]:
            yield SeriesMetric("kept", "Kept.", "counter", series, values)

    registry = CollectorRegistry()
    registry.register(Kept())

    assert exposition(registry) == generate_latest(registry)
