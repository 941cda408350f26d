import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from fake_kube import FakeKube
from operator_runs import eventually
from quire_operator.errors import UnavailableError
from quire_operator.plan import Event
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.recorder import EventRecorder
from quire_operator.runtime.resources import EVENTS

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "llm", "namespace": "default", "uid": "u"},
}
READY = Event("Normal", "Ready", "2 of 2 replicas are ready")


@contextlib.asynccontextmanager
async def recording(kube: FakeKube, max_pending: int = 10) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(
        cast(KubeApi, kube),
        kube.metrics,
        instance="pod-1",
        now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        max_pending=max_pending,
    )
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def posted(kube: FakeKube) -> list[dict[str, Any]]:
    return [manifest for (kind, _, _), manifest in kube.objects.items() if kind == EVENTS]


def is_newer(kube: FakeKube, version: int) -> bool:
    return kube.version > version


async def test_an_event_is_posted_on_its_deployment() -> None:
    kube = FakeKube()
    async with recording(kube) as recorder:
        recorder.post(DEPLOYMENT, READY)
        await eventually("an event", lambda: posted(kube))

    (event,) = posted(kube)
    assert event["involvedObject"]["name"] == "llm"
    assert event["reason"] == "Ready"
    assert event["source"] == {"component": "quire-operator"}


async def test_the_same_occurrence_is_counted_by_every_process() -> None:
    kube = FakeKube()
    for expected in (1, 2, 2):
        async with recording(kube) as recorder:
            version = kube.version
            recorder.post(DEPLOYMENT, READY)
            await eventually("a write", partial(is_newer, kube, version))
        assert [event["count"] for event in posted(kube)] == [expected]


async def test_events_that_cannot_be_posted_hold_nothing_up() -> None:
    kube = FakeKube()
    kube.fail = lambda *_: UnavailableError("away")
    async with recording(kube, max_pending=3) as recorder:
        for number in range(10):
            recorder.post(DEPLOYMENT, Event("Warning", "R", str(number)))
        assert recorder.num_pending == 3
        await eventually("they are dropped", lambda: recorder.num_pending == 0)
        kube.fail = lambda *_: None
        recorder.post(DEPLOYMENT, READY)
        await eventually("an event", lambda: posted(kube))
