"""One deployment through its life on a fake server, cut off at every write."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from fake_kube import FakeKube
from operator_planner import plan_small
from quire_operator.errors import ConflictError, InvalidError, UnavailableError
from quire_operator.plan import Event, Manifest, Observed, OperatorSettings, Plan
from quire_operator.runtime.applier import Applier
from quire_operator.runtime.discovery import ServerApis
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.reconciler import Planner, Reconciler, Result
from quire_operator.runtime.recorder import EventRecorder
from quire_operator.runtime.references import References
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS, by_api
from quire_operator.runtime.store import Store

KEY = ("default", "llm")
RESOURCES = by_api(BUILT_IN_CHILDREN)
SETS = RESOURCES["apps/v1", "StatefulSet"]


class KilledError(BaseException):
    """The process is no more."""


class Operator:
    """A fresh process: it knows only what the server has."""

    def __init__(self, kube: FakeKube, planner: Planner = plan_small) -> None:
        self.kube = kube
        self.time = 100.0
        api = cast(KubeApi, kube)
        self.store = Store(lambda _: None)
        self.recorder = EventRecorder(api, kube.metrics, instance="test", now=now)
        self.reconciler = Reconciler(
            api,
            self.store,
            Applier(api, self.store, kube.metrics, RESOURCES),
            self.recorder,
            References(api),
            kube.metrics,
            OperatorSettings(),
            apis=ServerApis,
            now=now,
            planner=planner,
            clock=lambda: self.time,
        )

    async def reconcile(self) -> Result:
        """Look twice, as the own writes of the first look would have it."""
        await self.look()
        return await self.reconciler.reconcile(KEY)

    async def look(self) -> Result:
        await self.sync()
        return await self.reconciler.reconcile(KEY)

    async def sync(self) -> None:
        for resource in (*BUILT_IN_CHILDREN, DEPLOYMENTS):
            page = await self.kube.list_page(resource)
            version = int(page["metadata"]["resourceVersion"])
            self.store.replace(resource, "", page["items"], version)


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def cluster(**spec: Any) -> FakeKube:
    kube = FakeKube()
    kube.seed(
        DEPLOYMENTS,
        {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": "llm", "namespace": "default"},
            "spec": {"model": {"source": "hf://a/b"}, "replicas": 2} | spec,
        },
    )
    return kube


def change(kube: FakeKube, **spec: Any) -> None:
    live = kube.live(DEPLOYMENTS, "llm")
    kube.seed(DEPLOYMENTS, live | {"spec": live["spec"] | spec})


def picture(kube: FakeKube) -> list[Manifest]:
    """What the cluster holds, apart from what counts up by itself."""
    return [
        {
            "kind": resource.kind,
            "name": name,
            "spec": manifest.get("spec"),
            "status": manifest.get("status"),
            "labels": manifest["metadata"].get("labels"),
        }
        for (resource, _, name), manifest in sorted(
            kube.objects.items(), key=lambda item: (item[0][0].kind, item[0][2])
        )
    ]


async def test_each_object_is_written_once_and_the_status_once() -> None:
    kube = cluster()
    operator = Operator(kube)

    await operator.reconcile()

    assert len(kube.writes) == len(set(kube.writes)) == 9
    assert kube.writes[-1] == "STATUS LLMDeployment/llm"


async def test_the_report_waits_for_the_look_after_the_first_writes() -> None:
    kube = cluster()
    operator = Operator(kube)

    await operator.look()
    assert "status" not in kube.live(DEPLOYMENTS, "llm")
    await operator.look()
    assert kube.live(DEPLOYMENTS, "llm")["status"]["observedGeneration"] == 1


async def test_a_report_is_put_off_once_even_if_somebody_keeps_changing_children() -> None:
    kube = cluster()
    operator = Operator(kube)
    for _ in range(2):
        await operator.look()
        kube.seed(SETS, kube.live(SETS, "llm-engine") | {"spec": {"replicas": 99}})

    assert kube.live(DEPLOYMENTS, "llm")["status"]["observedGeneration"] == 1


async def test_progress_is_told_in_steps_and_readiness_at_once() -> None:
    kube = cluster()
    operator = Operator(kube)
    await operator.reconcile()
    kube.writes.clear()

    for ready in (0, 1, 2):
        live = kube.live(SETS, "llm-engine")
        status = {"observedGeneration": 1, "replicas": ready, "readyReplicas": ready}
        kube.seed(SETS, live | {"status": status | {"updatedReplicas": ready}})
        result = await operator.look()

        is_ready = ready == 2
        assert kube.writes == (["STATUS LLMDeployment/llm"] if is_ready else [])
        assert (result.requeue_after_s is None) == (is_ready or ready == 0)
    operator.time += 20.0
    await operator.look()
    assert len(kube.writes) == 1


async def test_progress_is_told_when_enough_time_went_by() -> None:
    kube = cluster()
    operator = Operator(kube)
    await operator.reconcile()
    kube.writes.clear()
    live = kube.live(SETS, "llm-engine")
    status = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1}
    kube.seed(SETS, live | {"status": status})

    result = await operator.look()
    assert (kube.writes, result.requeue_after_s) == ([], 15.0)
    operator.time += 15.0
    await operator.look()
    assert kube.writes == ["STATUS LLMDeployment/llm"]


async def test_news_are_posted_with_their_report_and_not_before() -> None:
    kube = cluster()
    operator = Operator(kube)

    await operator.look()
    assert operator.recorder.num_pending == 0
    await operator.look()
    assert operator.recorder.num_pending == 1


async def test_a_second_look_and_a_second_process_write_nothing() -> None:
    kube = cluster()
    await Operator(kube).reconcile()
    kube.writes.clear()

    operator = Operator(kube)
    await operator.reconcile()
    await operator.reconcile()

    assert kube.writes == []


SCENARIOS: dict[str, dict[str, Any]] = {
    "create": {},
    "rollout": {"engine": {"image": "e:2"}},
    "scale up": {"replicas": 5},
    "prune": {"replicas": 1},
}


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_killed_at_any_write_it_ends_where_it_would_have_ended(
    scenario: str, is_after: bool
) -> None:
    undisturbed = await _prepared(scenario)
    await Operator(undisturbed).reconcile()
    num_writes = len(undisturbed.writes)
    assert num_writes >= 2
    expected = picture(undisturbed)

    for at_write in range(1, num_writes + 1):
        kube = await _prepared(scenario)
        _kill_at(kube, at_write, is_after=is_after)
        with pytest.raises(KilledError):
            await Operator(kube).reconcile()
        kube.fail = lambda *_: None

        await Operator(kube).reconcile()

        assert picture(kube) == expected, f"{scenario}: killed at {kube.writes[at_write - 1]}"
        assert len(kube.writes) <= num_writes + 1, "nothing is written twice but the last write"


async def _prepared(scenario: str) -> FakeKube:
    kube = cluster()
    if scenario != "create":
        await Operator(kube).reconcile()
        change(kube, **SCENARIOS[scenario])
        kube.writes.clear()
    return kube


def _kill_at(kube: FakeKube, at_write: int, *, is_after: bool) -> None:
    def die(*_: Any) -> None:
        if len(kube.writes) == at_write:
            kube.on_written = lambda: None
            raise KilledError

    if is_after:
        kube.on_written = die
    else:
        kube.fail = die


@pytest.mark.parametrize("at_write", range(1, 10))
async def test_a_server_that_fails_at_any_write_is_asked_again(at_write: int) -> None:
    kube = cluster()
    operator = Operator(kube)
    kube.fail = lambda *_: UnavailableError("away") if len(kube.writes) == at_write else None

    with pytest.raises(UnavailableError):
        await operator.reconcile()
    kube.fail = lambda *_: None
    await operator.reconcile()

    undisturbed = cluster()
    await Operator(undisturbed).reconcile()
    assert picture(kube) == picture(undisturbed)


async def test_a_report_on_a_spec_that_changed_meanwhile_is_refused_and_made_anew() -> None:
    kube = cluster()
    operator = Operator(kube)

    def edit(method: str, *_: Any) -> None:
        if method == "STATUS":
            kube.fail = lambda *_: None
            change(kube, replicas=3)

    kube.fail = cast(Any, edit)
    with pytest.raises(ConflictError):
        await operator.reconcile()
    await operator.reconcile()

    assert kube.live(DEPLOYMENTS, "llm")["status"]["observedGeneration"] == 2
    assert kube.live(SETS, "llm-engine")["spec"]["replicas"] == 3


async def test_a_deployment_that_is_being_deleted_is_left_alone() -> None:
    kube = cluster()
    live = kube.live(DEPLOYMENTS, "llm")
    live["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    kube.seed(DEPLOYMENTS, live)

    await Operator(kube).reconcile()

    assert kube.writes == []


async def test_a_deployment_that_vanishes_at_any_moment_leaves_nothing_behind() -> None:
    for at_write in range(1, 10):
        kube = cluster()
        operator = Operator(kube)

        def vanish(kube: FakeKube = kube, at_write: int = at_write) -> Any:
            def fail(*_: Any) -> None:
                if len(kube.writes) == at_write:
                    kube.fail = lambda *_: None
                    kube.remove(DEPLOYMENTS, "default", "llm")

            return fail

        kube.fail = vanish()
        await operator.reconcile()
        kube.writes.clear()
        await operator.reconciler.reconcile(KEY)

        assert kube.writes == []
        assert not operator.store.deployments


async def test_a_refused_object_is_in_the_status_and_is_tried_again() -> None:
    kube = cluster()
    error = InvalidError("spec: Forbidden: updates to statefulset spec for fields other than")
    kube.fail = lambda method, resource, _: error if (method, resource) == ("PATCH", SETS) else None

    result = await Operator(kube).reconcile()

    conditions = kube.live(DEPLOYMENTS, "llm")["status"]["conditions"]
    assert result.error is error
    assert [item["reason"] for item in conditions if item["type"] == "Applied"] == [
        "ImmutableFieldChanged"
    ]


async def test_nothing_is_pruned_while_something_is_refused() -> None:
    kube = await _prepared("prune")
    error = InvalidError("no")
    kube.fail = lambda method, resource, _: error if (method, resource) == ("PATCH", SETS) else None

    await Operator(kube).reconcile()

    assert not [write for write in kube.writes if write.startswith("DELETE")]


async def test_the_plan_says_when_to_look_again() -> None:
    def planner(deployment: Manifest, _: Observed, __: OperatorSettings) -> Plan:
        return Plan(status={}, events=(Event("Normal", "A", "b"),), requeue_after_s=42.0)

    assert (await Operator(cluster(), planner).reconcile()).requeue_after_s == 42.0
