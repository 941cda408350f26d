from typing import Any, cast

import pytest

from fake_kube import FakeKube
from operator_planner import key_of, with_hash
from quire_operator.errors import ForbiddenError, InvalidError, KubeError, UnavailableError
from quire_operator.plan import Deletion, Manifest
from quire_operator.runtime.applier import Applier, DeploymentGoneError
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import BUILT_IN_CHILDREN, DEPLOYMENTS, Resource, by_api
from quire_operator.runtime.store import Store

RESOURCES = by_api(BUILT_IN_CHILDREN)
SETS = RESOURCES["apps/v1", "StatefulSet"]
SERVICES = RESOURCES["v1", "Service"]
KEY = ("default", "llm")


def intent(resource: Resource, name: str, **spec: Any) -> Manifest:
    return with_hash(
        {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {"quire.dev/deployment": "llm"},
            },
            "spec": spec,
        }
    )


class Bench:
    """An applier on a fake server."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.store = Store(lambda _: None)
        api = cast(KubeApi, self.kube)
        self.applier = Applier(api, self.store, self.kube.metrics, RESOURCES)
        about = {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment"}
        self.deployment = self.kube.seed(
            DEPLOYMENTS, about | {"metadata": {"name": "llm", "namespace": "default"}}
        )
        self.store.put(DEPLOYMENTS, self.deployment)

    async def apply(self, *objects: Manifest) -> dict[str, str]:
        live = self.store.children(KEY)
        outcome = await self.applier.apply(self.deployment, objects, live)
        return {key.name: str(error) for key, error in outcome.errors.items()}

    def writes(self) -> list[str]:
        written, self.kube.writes = self.kube.writes, []
        return written


async def test_objects_are_applied_in_order_once() -> None:
    bench = Bench()
    objects = intent(SERVICES, "a", x=1), intent(SETS, "b", replicas=2)

    await bench.apply(*objects)
    assert bench.writes() == ["PATCH Service/a", "PATCH StatefulSet/b"]
    await bench.apply(*objects)
    assert bench.writes() == []


async def test_a_new_process_writes_nothing_where_nothing_differs() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b", replicas=2))
    bench.writes()
    fresh = Bench()
    fresh.kube, fresh.deployment = bench.kube, bench.deployment
    fresh.store.put(SETS, bench.kube.live(SETS, "b"))

    await fresh.apply(intent(SETS, "b", replicas=2))

    assert bench.writes() == []


async def test_drift_is_repaired() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b", replicas=2))
    live = bench.kube.live(SETS, "b")
    bench.store.put(SETS, bench.kube.seed(SETS, live | {"spec": {"replicas": 7}}))
    bench.writes()

    await bench.apply(intent(SETS, "b", replicas=2))

    assert bench.writes() == ["PATCH StatefulSet/b"]
    assert bench.kube.live(SETS, "b")["spec"] == {"replicas": 2}


async def test_a_label_that_somebody_took_away_comes_back() -> None:
    bench = Bench()
    wanted = intent(SETS, "b", replicas=2)
    wanted["metadata"]["labels"]["app"] = "x"
    await bench.apply(wanted)
    live = bench.kube.live(SETS, "b")
    del live["metadata"]["labels"]["app"]
    bench.store.put(SETS, bench.kube.seed(SETS, live))
    bench.writes()

    await bench.apply(wanted)

    assert bench.writes() == ["PATCH StatefulSet/b"]


async def test_a_spelling_of_the_servers_own_is_not_fought_over() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b", minReady="unknown-spelling"))
    live = bench.kube.objects[SETS, "default", "b"]
    live["spec"] = {"minReady": "spelled otherwise"}
    bench.store.clear(SETS)
    bench.store.put(SETS, bench.kube.live(SETS, "b"))
    bench.writes()

    for _ in range(3):
        await bench.apply(intent(SETS, "b", minReady="unknown-spelling"))

    assert bench.writes() == []


async def test_status_writes_of_others_do_not_make_us_write() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b", replicas=2))
    live = bench.kube.live(SETS, "b")
    bench.store.put(SETS, bench.kube.seed(SETS, live | {"status": {"readyReplicas": 1}}))
    bench.writes()

    await bench.apply(intent(SETS, "b", replicas=2))

    assert bench.writes() == []


@pytest.mark.parametrize(
    "error", [InvalidError("immutable"), ForbiddenError("quota"), KubeError("full")]
)
async def test_a_refused_object_does_not_hold_up_the_others(error: KubeError) -> None:
    bench = Bench()
    bench.kube.fail = lambda method, _, name: error if (method, name) == ("PATCH", "a") else None

    errors = await bench.apply(intent(SERVICES, "a"), intent(SETS, "b"))

    assert list(errors) == ["a"]
    assert bench.kube.live(SETS, "b")


async def test_a_server_that_is_away_ends_the_run() -> None:
    bench = Bench()
    bench.kube.fail = lambda method, *_: UnavailableError("away") if method == "PATCH" else None

    with pytest.raises(UnavailableError):
        await bench.apply(intent(SERVICES, "a"), intent(SETS, "b"))

    assert bench.writes() == ["PATCH Service/a"]


async def test_an_api_that_the_server_lacks_is_an_error_of_that_object() -> None:
    bench = Bench()
    monitor = Resource("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")

    assert "no PodMonitor" in (await bench.apply(intent(monitor, "m")))["m"]


async def test_no_child_is_made_for_a_deployment_that_is_gone() -> None:
    bench = Bench()
    bench.kube.remove(DEPLOYMENTS, "default", "llm")

    with pytest.raises(DeploymentGoneError):
        await bench.apply(intent(SETS, "b"))

    assert bench.writes() == []
    assert not bench.store.deployments


async def test_no_child_is_made_for_a_namesake() -> None:
    bench = Bench()
    bench.kube.remove(DEPLOYMENTS, "default", "llm")
    bench.kube.seed(DEPLOYMENTS, {"metadata": {"name": "llm", "namespace": "default"}})

    with pytest.raises(DeploymentGoneError):
        await bench.apply(intent(SETS, "b"))

    assert bench.writes() == []


async def test_only_the_object_that_was_meant_is_deleted() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b"))
    key = key_of(intent(SETS, "b"))

    await bench.applier.delete((Deletion(key, "uid-of-its-predecessor"),))
    assert bench.kube.live(SETS, "b")
    await bench.applier.delete((Deletion(key, bench.kube.live(SETS, "b")["metadata"]["uid"]),))
    assert not bench.store.children(KEY)


async def test_deleting_what_is_gone_already_is_no_error() -> None:
    bench = Bench()
    await bench.apply(intent(SETS, "b"))
    uid = bench.kube.live(SETS, "b")["metadata"]["uid"]
    bench.kube.remove(SETS, "default", "b")

    await bench.applier.delete((Deletion(key_of(intent(SETS, "b")), uid),))

    assert not bench.store.children(KEY)
