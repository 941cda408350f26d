import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

from fake_kube import FakeKube
from operator_runs import eventually
from quire_operator.errors import ForbiddenError, UnavailableError
from quire_operator.runtime.discovery import discover
from quire_operator.runtime.informers import Informers
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import DEPLOYMENTS, Resource
from quire_operator.runtime.store import Store

MONITORS = ("monitoring.coreos.com/v1", "PodMonitor")


@contextlib.asynccontextmanager
async def informing(
    kube: FakeKube, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Informers, Store, list[str]]]:
    store, news = Store(lambda _: None), list[str]()
    informers = Informers(
        cast(KubeApi, kube),
        store,
        kube.metrics,
        namespaces=namespaces,
        selector="quire.dev/deployment",
        node_selector="",
        on_new_apis=lambda: news.append("new"),
    )
    task = asyncio.create_task(informers.run())
    try:
        yield informers, store, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_is_filled_when_every_kind_was_listed() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api}
    async with informing(kube) as (informers, _, _news):
        await informers.synced.wait()
        assert informers.unsynced() == ""
        assert informers.apis.version == (1, 34)


async def test_without_the_crd_it_is_not_ready() -> None:
    async with informing(FakeKube()) as (informers, _, _news):
        await eventually("a discovery", lambda: informers.reflectors)
        assert "CRD llmdeployments.quire.dev" in informers.unsynced()
        assert not informers.synced.is_set()


async def test_an_optional_api_is_mirrored_while_the_server_has_it() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api, MONITORS}
    async with informing(kube) as (informers, store, news):
        await informers.synced.wait()
        resource = informers.resources[MONITORS]
        assert news == ["new"]
        kube.seed(resource, _monitor())
        store.put(resource, kube.live(resource, "m"))

        kube.apis = {DEPLOYMENTS.api}
        async with asyncio.TaskGroup() as group:
            await informers._rediscover(group)

        assert MONITORS not in informers.resources
        assert not store.children(("default", "llm"))
        assert news == ["new", "new"]


async def test_a_kind_that_may_not_be_watched_is_named() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api}

    def fail(_: str, resource: Resource, __: str) -> ForbiddenError | None:
        return ForbiddenError("forbidden", status=403) if resource.kind == "Job" else None

    kube.fail = fail
    async with informing(kube) as (informers, _, _news):
        await informers.synced.wait()
        assert informers.unsynced() == "no right to list and watch Job"


async def test_nodes_that_may_not_be_watched_are_no_reason_to_wait() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api}
    kube.fail = lambda _, resource, __: (
        ForbiddenError("forbidden", status=403) if resource.kind == "Node" else None
    )
    async with informing(kube) as (informers, store, _news):
        await informers.synced.wait()
        assert informers.unsynced() == ""
        assert len(store.nodes) == 0


async def test_each_namespace_has_its_own_watches_and_nodes_have_one() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api}
    async with informing(kube, ("a", "b")) as (informers, _, _news):
        await informers.synced.wait()
        names = [reflector.name for reflector in informers.reflectors]
        assert "Pod@a" in names
        assert "Pod@b" in names
        assert names.count("Node") == 1


async def test_a_discovery_that_fails_is_tried_again() -> None:
    kube = FakeKube()
    kube.apis = {DEPLOYMENTS.api}
    raw, calls = kube.raw, list[str]()

    async def fail_once(path: str, *, accept: str = "") -> dict[str, object]:
        calls.append(path)
        if len(calls) == 1:
            raise UnavailableError("away")
        return await raw(path, accept=accept)

    kube.raw = fail_once  # type: ignore[method-assign]
    async with informing(kube) as (informers, _, _news):
        await eventually("a second try", informers.synced.is_set)


async def test_discovery_reads_versions_as_managed_servers_write_them() -> None:
    assert (await discover(cast(KubeApi, FakeKube()))).version == (1, 34)


def _monitor() -> dict[str, object]:
    labels = {"quire.dev/deployment": "llm"}
    return {"metadata": {"name": "m", "namespace": "default", "labels": labels}}
