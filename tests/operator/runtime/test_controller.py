import asyncio
import contextlib
from collections.abc import AsyncIterator

from operator_runs import eventually
from quire_operator.errors import ConflictError, InvalidError, UnavailableError
from quire_operator.runtime.controller import Controller, Pace, Reconcile, delay_after
from quire_operator.runtime.metrics import DeploymentKey, OperatorMetrics
from quire_operator.runtime.reconciler import Result
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS, NODES, PODS
from quire_operator.runtime.schedule import Backoff
from quire_operator.runtime.store import Change, Notice
from quire_operator.runtime.workqueue import WorkQueue

KEY = ("default", "llm")
PACE = Pace(settle_s=0.5, drift_s=0.05, nodes_s=3.0)
SETS = BUILT_IN_CHILDREN[0]


@contextlib.asynccontextmanager
async def controlling(
    reconcile: Reconcile, *, num_workers: int = 2
) -> AsyncIterator[tuple[Controller, OperatorMetrics]]:
    metrics = OperatorMetrics()
    queue: WorkQueue[DeploymentKey] = WorkQueue(backoff=Backoff(first_s=0.01, max_s=0.02))
    metrics.watch_queue(queue.schedule, queue.clock)
    controller = Controller(
        queue, reconcile, metrics, num_workers=num_workers, all_keys=lambda: [KEY], pace=PACE
    )
    task = asyncio.create_task(controller.run())
    try:
        yield controller, metrics
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def results(metrics: OperatorMetrics) -> dict[str, float]:
    values = {}
    for result in ("success", "requeue", "requeue_after", "error"):
        labels = {"controller": "llmdeployment", "result": result}
        found = metrics.registry.get_sample_value("controller_runtime_reconcile_total", labels)
        values[result] = found or 0.0
    return values


def test_what_a_person_did_is_looked_at_at_once_and_bursts_are_collected() -> None:
    delays = {
        "a new deployment": Notice(DEPLOYMENTS, Change.ADDED, KEY),
        "an edited deployment": Notice(DEPLOYMENTS, Change.SPEC, KEY),
        "a deleted child": Notice(SETS, Change.REMOVED, KEY),
        "an edited child": Notice(SETS, Change.SPEC, KEY),
        "our own write": Notice(SETS, Change.ADDED, KEY, is_own=True),
        "a child's status": Notice(SETS, Change.STATUS, KEY),
        "a new pod": Notice(PODS, Change.ADDED, KEY),
        "a node": Notice(NODES, Change.SPEC, None),
    }

    assert {name: delay_after(notice, PACE) for name, notice in delays.items()} == {
        "a new deployment": 0.0,
        "an edited deployment": 0.0,
        "a deleted child": 0.05,
        "an edited child": 0.05,
        "our own write": 0.5,
        "a child's status": 0.5,
        "a new pod": 0.5,
        "a node": 3.0,
    }


async def test_a_leader_looks_at_everything_once() -> None:
    seen: list[DeploymentKey] = []

    async def reconcile(key: DeploymentKey) -> Result:
        seen.append(key)
        return Result()

    async with controlling(reconcile) as (_, metrics):
        await eventually("a look", lambda: seen)
        await eventually("its count", lambda: results(metrics)["success"] == 1.0)


async def test_every_way_to_fail_is_tried_again_and_counted() -> None:
    failures = [UnavailableError("away"), ConflictError("changed"), ZeroDivisionError("a bug")]

    async def reconcile(_: DeploymentKey) -> Result:
        if failures:
            raise failures.pop(0)
        return Result(requeue_after_s=100.0)

    async with controlling(reconcile) as (_, metrics):
        await eventually("success", lambda: results(metrics)["requeue_after"])

    assert results(metrics) == {"success": 0, "requeue": 1, "requeue_after": 1, "error": 2}
    text = metrics.render().decode()
    assert 'controller_runtime_reconcile_panics_total{controller="llmdeployment"} 1.0' in text
    assert "workqueue_retries_total" in text


async def test_a_refused_object_is_an_error_that_only_a_change_can_help() -> None:
    async def reconcile(_: DeploymentKey) -> Result:
        return Result(error=InvalidError("immutable", status=422))

    async with controlling(reconcile) as (_, metrics):
        await eventually("an error", lambda: results(metrics)["error"])
        text = metrics.render().decode()
    assert "controller_runtime_terminal_reconcile_errors_total" in text


async def test_work_in_hand_is_finished_before_the_process_stops() -> None:
    started, finish = asyncio.Event(), asyncio.Event()
    finished: list[DeploymentKey] = []

    async def reconcile(key: DeploymentKey) -> Result:
        started.set()
        await finish.wait()
        finished.append(key)
        return Result()

    async with controlling(reconcile) as (controller, _):
        await started.wait()
        controller.stop()
        draining = asyncio.create_task(controller.drain(60.0))
        await asyncio.sleep(0.05)
        assert not draining.done()
        finish.set()
        await draining
    assert finished == [KEY]


async def test_work_that_does_not_end_does_not_hold_up_the_stop() -> None:
    started = asyncio.Event()

    async def reconcile(_: DeploymentKey) -> Result:
        started.set()
        await asyncio.Event().wait()
        return Result()

    async with controlling(reconcile) as (controller, _):
        await started.wait()
        controller.stop()
        await controller.drain(0.05)
