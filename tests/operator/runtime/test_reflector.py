import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

from fake_kube import FakeKube
from operator_runs import eventually
from quire_operator.errors import ForbiddenError, GoneError, KubeError, UnavailableError
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.reflector import Reflector, ReflectorTimes
from quire_operator.runtime.resources import PODS
from quire_operator.runtime.store import Store

KEY = ("default", "llm")
TIMES = ReflectorTimes(silence_s=60.0, max_backoff_s=0.05, forbidden_s=0.05)


def pod(name: str, version: int = 0) -> Manifest:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "labels": {"quire.dev/deployment": "llm"},
    }
    if version:
        metadata |= {"resourceVersion": str(version), "uid": name}
    return {"metadata": metadata}


@contextlib.asynccontextmanager
async def mirror(
    kube: FakeKube, times: ReflectorTimes = TIMES
) -> AsyncIterator[tuple[Store, Reflector]]:
    store = Store(lambda _: None)
    reflector = Reflector(cast(KubeApi, kube), store, kube.metrics, PODS, times=times)
    task = asyncio.create_task(reflector.run())
    await reflector.synced.wait()
    await eventually("a watch", lambda: kube.watches[PODS] or reflector.is_forbidden)
    try:
        yield store, reflector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(store: Store) -> list[str]:
    return [item["metadata"]["name"] for item in store.pods(KEY)]


async def test_it_lists_and_then_follows() -> None:
    kube = FakeKube()
    kube.seed(PODS, pod("a"))
    async with mirror(kube) as (store, _):
        kube.tell(PODS, {"type": "ADDED", "object": pod("b", 200)})
        await eventually("b", lambda: names(store) == ["a", "b"])
        kube.tell(PODS, {"type": "DELETED", "object": pod("b", 201)})
        await eventually("b is gone", lambda: names(store) == ["a"])
    assert kube.num_lists == 1


async def test_a_connection_that_ends_is_taken_up_without_a_list() -> None:
    kube = FakeKube()
    async with mirror(kube) as (store, _):
        [old] = kube.watches[PODS]
        kube.tell(PODS, None)
        await eventually("a new watch", lambda: kube.watches[PODS] and kube.watches[PODS] != [old])
        kube.tell(PODS, {"type": "ADDED", "object": pod("b", 200)})
        await eventually("b", lambda: names(store) == ["b"])
    assert kube.num_lists == 1


async def test_what_vanished_before_a_410_is_found_missing() -> None:
    kube = FakeKube()
    kube.seed(PODS, pod("a"))
    async with mirror(kube) as (store, _):
        assert names(store) == ["a"]
        kube.remove(PODS, "default", "a")
        kube.version += 1
        error = {"code": 410, "message": "too old resource version"}
        kube.tell(PODS, {"type": "ERROR", "object": error})
        await eventually("a is gone", lambda: names(store) == [])
    assert kube.num_lists == 2


async def test_silence_is_not_believed() -> None:
    kube = FakeKube()
    kube.seed(PODS, pod("a"))
    async with mirror(kube, replace(TIMES, silence_s=0.3)) as (store, _):
        kube.remove(PODS, "default", "a")
        kube.version += 1
        await eventually("a is gone", lambda: names(store) == [])


async def test_a_410_when_opening_lists_again() -> None:
    kube = FakeKube()
    opened = 0

    def fail(method: str, *_: Any) -> KubeError | None:
        nonlocal opened
        opened += method == "WATCH"
        return GoneError("too old", status=410) if method == "WATCH" and opened == 1 else None

    kube.fail = fail
    async with mirror(kube):
        await eventually("a second list", lambda: kube.num_lists == 2)


async def test_a_server_that_comes_back_is_found_again() -> None:
    kube = FakeKube()
    async with mirror(kube, replace(TIMES, silence_s=0.3)) as (store, reflector):
        kube.fail = lambda *_: UnavailableError("away")
        kube.tell(PODS, None)
        await asyncio.sleep(0.2)
        kube.seed(PODS, pod("a"))
        kube.fail = lambda *_: None
        await eventually("a", lambda: names(store) == ["a"])
        assert reflector.stuck_for_s < 30.0


async def test_what_may_not_be_listed_is_empty_and_no_reason_to_wait() -> None:
    kube = FakeKube()
    kube.fail = lambda *_: ForbiddenError("pods is forbidden", status=403)
    async with mirror(kube) as (store, reflector):
        assert reflector.is_forbidden
        assert names(store) == []
        kube.fail = lambda *_: None
        kube.seed(PODS, pod("a"))
        await eventually("a", lambda: names(store) == ["a"])
        assert not reflector.is_forbidden


async def test_a_reflector_that_hangs_says_so() -> None:
    now = 0.0
    reflector = Reflector(
        cast(KubeApi, FakeKube()),
        Store(lambda _: None),
        FakeKube().metrics,
        PODS,
        clock=lambda: now,
    )
    now = 500.0

    assert reflector.stuck_for_s == 500.0
    assert reflector.silent_for_s == 500.0
