from prometheus_client import CollectorRegistry, generate_latest

from pool_support import dispatching, eventually, lengths, read, start
from quire_engine.errors import InvalidRequestError
from quire_engine.testing import FakeEngine
from quire_router.dispatcher import PoolDispatcher
from quire_router.pool_config import PoolConfig
from quire_router.prefix_index import IndexMode

PROMPT = list(range(1, 200))


def value(dispatcher: PoolDispatcher, name: str, **labels: str) -> float | None:
    return dispatcher._registry.get_sample_value(f"quire_router_{name}", labels or None)


async def test_a_replica_is_described_and_counted() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        [replica] = dispatcher._pool.replicas
        await eventually(lambda: replica.index.mode is IndexMode.EXACT)
        await read(start(dispatcher, PROMPT))
        await eventually(lambda: len(replica.index) >= 12)
        await read(start(dispatcher, PROMPT))

        def of(name: str, **labels: str) -> float | None:
            return value(dispatcher, f"replica_{name}", replica=engine.address, **labels)

        assert of("up") == 1
        assert of("state", state="ready") == 1
        assert of("state", state="draining") == 0
        assert of("requests_total") == 2
        assert of("prompt_tokens_total") == 2 * len(PROMPT)
        assert of("expected_cached_tokens_total") == of("cached_tokens_total") == 192
        assert of("connections_total") == 1
        assert of("prefix_index_blocks") == 12
        assert of("in_flight") == of("running") == of("waiting") == 0
        assert of("prefix_index_mode", mode="exact") == 1
        assert value(dispatcher, "decision_seconds_count", mode="exact") == 2


async def test_failures_are_counted_by_reason() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        engine.refuse(InvalidRequestError("no"))
        stream = start(dispatcher, PROMPT)
        await eventually(lambda: stream.is_ended)

        labels = {"replica": engine.address}
        failures = "replica_failures_total"
        assert value(dispatcher, failures, reason="refused", **labels) == 1
        assert value(dispatcher, failures, reason="fault", **labels) == 0


async def test_the_series_of_a_replica_that_is_gone_are_gone() -> None:
    async with (
        FakeEngine() as one,
        FakeEngine() as two,
        dispatching(one.address, two.address) as dispatcher,
    ):
        await lengths([start(dispatcher, [n, *PROMPT]) for n in range(4)])

        dispatcher._pool._wanted[0] = frozenset({one.address})
        dispatcher._pool._reconcile()
        await eventually(lambda: len(dispatcher._pool.replicas) == 1)

        text = generate_latest(dispatcher._registry).decode()
        assert one.address in text
        assert two.address not in text


async def test_waiting_requests_are_shown() -> None:
    async with dispatching("unix:/nonexistent/engine.sock", ready=0) as dispatcher:
        waiting = [start(dispatcher, PROMPT) for _ in range(3)]
        assert value(dispatcher, "parked_requests") == 3
        for stream in waiting:
            stream.cancel()
        assert value(dispatcher, "parked_requests") == 0


def test_every_family_is_there_before_any_replica_is() -> None:
    registry = CollectorRegistry()
    PoolDispatcher(PoolConfig(), registry)
    text = generate_latest(registry).decode()
    assert "# TYPE quire_router_replica_up gauge" in text
    assert "# TYPE quire_router_replica_requests_total counter" in text
