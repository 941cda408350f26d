"""Discovery against a server that speaks the API's wire format and misbehaves on demand."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pool_support import eventually
from quire_router.discovery import parse_replicas
from quire_router.discovery_metrics import DiscoveryCollector
from quire_router.discovery_status import DiscoveryStatus
from quire_router.endpoint_slices import ServiceName
from quire_router.errors import ConfigError
from quire_router.kubernetes_api import SILENCE_S, WATCH_S, InCluster, KubernetesApi
from quire_router.kubernetes_discovery import FIRST_RETRY_S, KubernetesDiscovery
from quire_router.pool_config import PoolConfig
from scripted_api_server import ScriptedApiServer, endpoint, scripted_api_server, slice_of

ONE, TWO = endpoint("10.0.0.1"), endpoint("10.0.0.2")
PATH = "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices"


@dataclass
class Followed:
    """A discovery that is being followed, and all that it said."""

    status: DiscoveryStatus
    said: list[frozenset[str]]

    @property
    def now(self) -> set[str]:
        return {target.removesuffix(":50051") for target in self.said[-1]} if self.said else set()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedApiServer]:
    async with scripted_api_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def following(
    server: ScriptedApiServer, *, service: str = "engines.llm:grpc", silence_s: float = 60.0
) -> AsyncIterator[Followed]:
    status = DiscoveryStatus(source=f"kubernetes:///{service}")
    api = KubernetesApi(server.cluster, silence_s=silence_s)
    discovery = KubernetesDiscovery(ServiceName.parse(service), api, status)
    followed = Followed(status, [])

    async def follow() -> None:
        async for targets in discovery.watch():
            followed.said.append(targets)

    task = asyncio.create_task(follow())
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_listed_is_known_and_what_is_watched_is_noticed(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE))
    async with following(server) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})

        server.tell("ADDED", slice_of("b", TWO))
        await eventually(lambda: followed.now == {"10.0.0.1", "10.0.0.2"})
        server.tell("MODIFIED", slice_of("b"))
        await eventually(lambda: followed.now == {"10.0.0.1"})
        server.tell("DELETED", slice_of("a"))
        await eventually(lambda: followed.now == set())

    [listed] = server.lists
    assert listed.path == PATH
    assert listed.query["labelSelector"] == "kubernetes.io/service-name=engines"
    [watched] = server.watch_queries
    assert watched["resourceVersion"] == "2"
    assert watched["allowWatchBookmarks"] == "true"


async def test_an_endpoint_that_terminates_is_dropped_by_one_event(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE, TWO))
    async with following(server) as followed:
        await eventually(lambda: server.watches and len(followed.now) == 2)

        server.tell("MODIFIED", slice_of("a", ONE, endpoint("10.0.0.2", terminating=True)))

        await eventually(lambda: followed.now == {"10.0.0.1"})
        assert followed.status.num_endpoints == {"ready": 1, "not_ready": 0, "terminating": 1}


async def test_a_watch_that_ends_is_followed_by_a_list_which_knows_of_missed_deletions(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE), slice_of("b", TWO))
    async with following(server) as followed:
        await eventually(lambda: server.watches and len(followed.now) == 2)

        server.set(slice_of("a", ONE))  # and nobody is told of the deletion
        server.end_watch()

        await eventually(lambda: followed.now == {"10.0.0.1"})


async def test_a_version_that_is_gone_is_followed_by_a_list(server: ScriptedApiServer) -> None:
    server.set(slice_of("a", ONE))
    async with following(server) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})

        server.set(slice_of("a", TWO))
        server.tell("ERROR", {"kind": "Status", "code": 410, "message": "too old"})

        await eventually(lambda: followed.now == {"10.0.0.2"})
        assert followed.status.failures == {"expired": 1}


async def test_a_silent_watch_is_given_up_and_followed_by_a_list(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE))
    async with following(server, silence_s=0.3) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})

        server.set(slice_of("a", TWO))

        await eventually(lambda: followed.now == {"10.0.0.2"})
        assert followed.status.failures["silent"] >= 1


def test_a_watch_of_which_nothing_is_heard_may_last_its_time() -> None:
    assert SILENCE_S > WATCH_S


async def test_bookmarks_keep_a_quiet_watch_alive(server: ScriptedApiServer) -> None:
    server.set(slice_of("a", ONE))
    async with following(server, silence_s=3.0) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})
        began_at = time.monotonic()

        while time.monotonic() < began_at + 4.0:
            followed.status.heard_at = None
            server.tell("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
            await eventually(lambda: followed.status.heard_at is not None)
            await asyncio.sleep(0.1)

        assert len(server.lists) == 1
        assert followed.said == [{"10.0.0.1:50051"}]


async def test_a_server_that_refuses_keeps_what_is_known_and_is_asked_again(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE))
    async with following(server) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})

        server.list_status = 500
        server.tell("ERROR", {"kind": "Status", "code": 500, "message": "ouch"})
        await eventually(lambda: followed.status.failures.get("500", 0) >= 2)
        assert followed.now == {"10.0.0.1"}
        server.set(slice_of("a", TWO))
        server.list_status = 200

        await eventually(lambda: followed.now == {"10.0.0.2"})


async def test_a_list_that_is_not_allowed_says_what_is_missing(
    server: ScriptedApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.list_status = 403
    async with following(server) as followed:
        await eventually(lambda: followed.status.failures.get("forbidden", 0) >= 1)

    assert followed.said == []
    assert "needs list and watch on endpointslices" in caplog.text


async def test_watches_that_end_at_once_are_not_asked_for_without_a_pause(
    server: ScriptedApiServer,
) -> None:
    server.ends_watches = True
    began_at = time.monotonic()
    async with following(server) as followed:
        await eventually(lambda: followed.status.failures.get("short", 0) >= 4)

    assert time.monotonic() - began_at >= 3 * FIRST_RETRY_S / 2


async def test_a_token_that_is_replaced_is_used_from_then_on(server: ScriptedApiServer) -> None:
    server.set(slice_of("a", ONE))
    async with following(server) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})

        server.token = "token-2"
        server.set(slice_of("a", TWO))
        server.end_watch()
        server.tell("ERROR", {"kind": "Status", "code": 401, "message": "Unauthorized"})
        await eventually(lambda: followed.status.failures.get("401", 0) >= 1)
        (server.cluster.directory / "token").write_text("token-2")

        await eventually(lambda: followed.now == {"10.0.0.2"})


async def test_a_server_that_is_gone_makes_discovery_stale_and_not_empty(
    server: ScriptedApiServer,
) -> None:
    server.set(slice_of("a", ONE))
    async with following(server) as followed:
        await eventually(lambda: server.watches and followed.now == {"10.0.0.1"})
        gone = replace(server.cluster, base_url="http://127.0.0.1:9")

    status = DiscoveryStatus(source="kubernetes:///engines", clock=itertools.count().__next__)
    discovery = KubernetesDiscovery(ServiceName.parse("engines:1"), KubernetesApi(gone), status)
    asked = asyncio.ensure_future(anext(discovery.watch()))
    await eventually(lambda: status.failures.get("unreachable", 0) >= 2)

    assert not asked.done()
    asked.cancel()
    assert status.heard_at is None
    assert status.age_s > 0


async def test_without_a_namespace_it_is_that_of_the_pod(server: ScriptedApiServer) -> None:
    async with following(server, service="engines:50051"):
        await eventually(lambda: server.lists)

    assert "/namespaces/default/" in server.lists[0].path


async def test_a_slice_larger_than_any_buffer_arrives_whole(server: ScriptedApiServer) -> None:
    many = [endpoint(f"10.{i // 250}.{i % 250}.1", pod=f"pod-{i}" * 20) for i in range(2000)]
    async with following(server) as followed:
        await eventually(lambda: server.watches)

        server.tell("ADDED", slice_of("a", *many))

        await eventually(lambda: len(followed.now) == 2000)


async def test_metrics_say_how_old_discovery_is_and_which_pods_it_found(
    server: ScriptedApiServer,
) -> None:
    registry = CollectorRegistry()
    server.set(slice_of("a", endpoint("10.0.0.1", pod="engine-0")))
    async with following(server) as followed:
        registry.register(DiscoveryCollector(lambda: [followed.status]))
        before = generate_latest(registry).decode()
        await eventually(lambda: server.watches)
        after = generate_latest(registry).decode()

    source = 'source="kubernetes:///engines.llm:grpc"'
    assert f"quire_router_discovery_synced{{{source}}} 0.0" in before
    assert f"quire_router_discovery_synced{{{source}}} 1.0" in after
    assert f"quire_router_discovery_lists_total{{{source}}} 1.0" in after
    assert f'quire_router_discovery_endpoints{{{source},state="ready"}} 1.0' in after
    assert f"quire_router_discovery_age_seconds{{{source}}}" in after
    known = 'quire_router_replica_info{node="node-1",pod="engine-0",replica="10.0.0.1:50051"} 1.0'
    assert known in after


def environment(tmp_path: Path) -> dict[str, str]:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    return {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_pod_finds_its_api_server(tmp_path: Path) -> None:
    known = environment(tmp_path)

    assert InCluster.find(known, str(tmp_path)).base_url == "https://10.96.0.1:443"
    six = known | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert InCluster.find(six, str(tmp_path)).base_url == "https://[fd00::1]:443"
    assert InCluster.find(known, str(tmp_path)).namespace == "default"


def test_outside_of_a_cluster_the_message_says_what_to_do(tmp_path: Path) -> None:
    replicas = PoolConfig(replicas=("kubernetes:///engines:1",), service_account_dir=str(tmp_path))

    with pytest.raises(ConfigError, match=r"KUBERNETES_SERVICE_HOST is not set; .* dns:///"):
        parse_replicas(replicas, {})
    with pytest.raises(ConfigError, match=r"no token and no ca\.crt; set automountService"):
        parse_replicas(replicas, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})

    [source] = parse_replicas(replicas, environment(tmp_path))
    assert isinstance(source, KubernetesDiscovery)
    assert source.status.source == "kubernetes:///engines:1"
