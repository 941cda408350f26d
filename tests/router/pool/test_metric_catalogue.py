"""What the router exposes is what its catalogue declares, name by name."""

from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pool_support import dispatching, eventually, read, start
from quire_engine.testing import FakeEngine, FakeModel
from quire_router.discovery_metrics import DiscoveryCollector
from quire_router.discovery_status import DiscoveryStatus, Endpoint
from quire_router.failure import Verdict
from quire_router.http_metrics import HttpMetrics, SloTargets
from quire_router.metric_catalogue import CATALOGUE, FAILURES, INDEX_MODES, STATES, Declared
from quire_router.prefix_index import IndexMode
from quire_router.replica import ReplicaState
from quire_router.workers.process_metrics import LoneProcessCollector

PROMPT = list(range(1, 200))


def families(registry: CollectorRegistry) -> dict[str, Metric]:
    text = generate_latest(registry).decode()
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        assert family.name not in found or not family.samples, family.name
        found.setdefault(family.name, family)
    return found


@pytest.fixture
async def exposed() -> AsyncIterator[dict[str, Metric]]:
    """Everything that a router with a replica, a source and targets exposes."""
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        registry = dispatcher._registry
        registry.register(LoneProcessCollector())
        metrics = HttpMetrics(registry, targets=SloTargets(first_token_s=1.0), version="1")
        metrics.requests.labels("/v1/models", "200").inc()
        metrics.disconnects.labels("/v1/completions").inc()
        metrics.request_s.labels("/v1/models").observe(0.1)
        dispatcher._metrics.retries.labels("lost").inc()
        await read(start(dispatcher, PROMPT))
        status = DiscoveryStatus(source="kubernetes:///engine")
        status.failed("timeout")
        status.num_endpoints["ready"] = 1
        status.endpoints = {engine.address: Endpoint(pod="engine-0", node="node-1")}
        shown = families(registry)
        # The dispatcher has a collector of its sources already, which cannot go stale here.
        other = CollectorRegistry()
        other.register(DiscoveryCollector(lambda: [status]))
        yield {**shown, **families(other)}


async def test_every_declared_metric_is_exposed_and_no_other(
    exposed: dict[str, Metric],
) -> None:
    assert set(exposed) == {declared.family for declared in CATALOGUE}


async def test_metrics_are_exposed_as_they_are_declared(exposed: dict[str, Metric]) -> None:
    for declared in CATALOGUE:
        family = exposed[declared.family]
        assert family.type == declared.kind, declared.name
        assert family.documentation == declared.help, declared.name
        assert family.samples, declared.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(declared.labels), declared.name
        check_values(declared, family)


def check_values(declared: Declared, family: Metric) -> None:
    if declared.values:
        shown = {sample.labels[declared.labels[-1]] for sample in family.samples}
        assert shown == set(declared.values), declared.name
    if declared.kind == "histogram":
        bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
        assert bounds == {*(str(float(bound)) for bound in declared.buckets), "+Inf"}


def test_the_values_of_labels_are_those_of_the_code() -> None:
    assert set(STATES) == {state.value for state in ReplicaState}
    assert set(FAILURES) == {verdict.value for verdict in Verdict}
    assert set(INDEX_MODES) == {mode.value for mode in IndexMode}


def test_names_follow_the_conventions_of_prometheus() -> None:
    for declared in CATALOGUE:
        assert declared.name.endswith("_total") == (declared.kind == "counter"), declared.name
        assert declared.name.startswith("quire_router_")
        assert declared.help.endswith("."), declared.name


async def test_decisions_tell_what_the_prefix_was_worth() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        dispatching(one.address, two.address) as dispatcher,
    ):

        def of(name: str, prefix: str) -> float | None:
            return dispatcher._registry.get_sample_value(
                f"quire_router_{name}_total", {"prefix": prefix}
            )

        await read(start(dispatcher, PROMPT))
        await eventually(lambda: any(len(r.index) >= 12 for r in dispatcher._pool.replicas))
        await read(start(dispatcher, PROMPT))

        assert (of("decisions", "none"), of("decisions", "best")) == (1, 1)
        assert of("decision_prompt_tokens", "best") == len(PROMPT)
        assert of("decision_expected_cached_tokens", "best") == 192


async def test_a_request_taken_back_counts_as_cancelled() -> None:
    model = FakeModel(decode_ms=10.0)
    async with FakeEngine(model) as engine, dispatching(engine.address) as dispatcher:
        stream = start(dispatcher, PROMPT, max_tokens=10_000)
        await stream.next()
        stream.cancel()

        labels = {"replica": engine.address}
        value = dispatcher._registry.get_sample_value
        assert value("quire_router_replica_cancelled_total", labels) == 1
        assert value("quire_router_replica_time_to_first_token_seconds_count", labels) == 1


@pytest.mark.parametrize(
    ("first_token_s", "generation_s", "result"),
    [(0.5, 1.0, "met"), (1.5, 1.0, "slow_first_token"), (0.5, 5.0, "slow_tokens")],
)
def test_requests_are_judged_by_the_targets(
    first_token_s: float, generation_s: float, result: str
) -> None:
    registry = CollectorRegistry()
    targets = SloTargets.from_ms(first_token_ms=1000, per_token_ms=200)
    metrics = HttpMetrics(registry, targets=targets)

    metrics.judge(first_token_s=first_token_s, generation_s=generation_s, num_tokens=11)

    name = "quire_router_slo_requests_total"
    counted = {
        value: registry.get_sample_value(name, {"result": value})
        for value in ("met", "slow_first_token", "slow_tokens")
    }
    assert [value for value, count in counted.items() if count] == [result]
