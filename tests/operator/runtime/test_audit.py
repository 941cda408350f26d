from typing import Any, cast

from fake_kube import FakeKube
from quire_operator.plan import Manifest
from quire_operator.runtime.audit import Audit
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import DEPLOYMENTS
from quire_operator.runtime.store import Store


def seed(kube: FakeKube, name: str, **spec: Any) -> Manifest:
    return kube.seed(
        DEPLOYMENTS, {"metadata": {"name": name, "namespace": "default"}, "spec": spec}
    )


def make() -> tuple[FakeKube, Store, Audit, list[str]]:
    kube, missed = FakeKube(), list[str]()
    store = Store(lambda _: None)
    audit = Audit(
        cast(KubeApi, kube), store, namespaces=(), on_missed=lambda: missed.append(""), grace_s=0.0
    )
    return kube, store, audit, missed


async def test_a_deployment_that_is_gone_is_taken_out() -> None:
    kube, store, audit, missed = make()
    store.put(DEPLOYMENTS, seed(kube, "a"))
    store.put(DEPLOYMENTS, seed(kube, "b"))
    kube.remove(DEPLOYMENTS, "default", "a")

    await audit.audit()

    assert list(store.deployments) == [("default", "b")]
    assert not missed


async def test_a_change_that_nobody_told_of_is_read_and_kopf_starts_again() -> None:
    kube, store, audit, missed = make()
    store.put(DEPLOYMENTS, seed(kube, "a", replicas=1))
    seed(kube, "a", replicas=2)
    seed(kube, "new")

    await audit.audit()

    assert store.deployments["default", "a"]["spec"] == {"replicas": 2}
    assert ("default", "new") in store.deployments
    assert len(missed) == 1


async def test_a_watch_that_keeps_missing_things_is_reported() -> None:
    kube, _, audit, _ = make()
    for replicas in range(3):
        assert audit.problem() == ""
        seed(kube, "a", replicas=replicas)
        await audit.audit()

    assert "3 audits" in audit.problem()
    await audit.audit()
    assert audit.problem() == ""


async def test_an_audit_that_finds_nothing_does_nothing() -> None:
    kube, store, audit, missed = make()
    store.put(DEPLOYMENTS, seed(kube, "a"))

    await audit.audit()

    assert kube.writes == []
    assert not missed
