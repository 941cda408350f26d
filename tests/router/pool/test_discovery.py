import socket

import pytest

from quire_router.discovery import (
    Discovery,
    DnsDiscovery,
    StaticDiscovery,
    parse_replicas,
    target,
)
from quire_router.errors import ConfigError
from quire_router.pool_config import PoolConfig


class Answers:
    """A resolver that gives one prepared answer after another, the last one for ever."""

    def __init__(self, *answers: set[str] | OSError) -> None:
        self._answers = list(answers)

    async def __call__(self, host: str, port: int) -> set[str]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


async def first(num: int, *answers: set[str] | OSError) -> list[frozenset[str]]:
    discovery = DnsDiscovery("engines", 50051, interval_s=0.001, resolve=Answers(*answers))
    seen = []
    async for targets in discovery.watch():
        seen.append(targets)
        if len(seen) == num:
            break
    return seen


def parse(*replicas: str) -> list[Discovery]:
    return parse_replicas(PoolConfig(replicas=replicas), {})


def targets(*hosts: str) -> frozenset[str]:
    return frozenset(f"{host}:50051" for host in hosts)


async def test_static_targets_come_once() -> None:
    seen = [found async for found in StaticDiscovery(["a:1", "b:2"]).watch()]
    assert seen == [{"a:1", "b:2"}]


async def test_every_address_is_a_replica() -> None:
    assert await first(1, {"10.0.0.1", "10.0.0.2"}) == [targets("10.0.0.1", "10.0.0.2")]


async def test_an_address_is_gone_when_absent_twice() -> None:
    seen = await first(2, {"1", "2"}, {"1"}, {"1", "2"}, {"1"}, {"1"})
    assert seen == [targets("1", "2"), targets("1")]


async def test_a_failed_look_up_keeps_what_is_known() -> None:
    failure = socket.gaierror(-2, "Name or service not known")
    seen = await first(2, {"1"}, failure, failure, failure, {"1", "3"})
    assert seen == [targets("1"), targets("1", "3")]


async def test_a_name_that_never_resolved_has_no_replicas() -> None:
    assert await first(1, socket.gaierror(-2, "Name or service not known")) == [frozenset()]


async def test_localhost_resolves_for_real() -> None:
    [source] = parse("dns:///localhost:50051")
    found = await anext(aiter(source.watch()))
    assert found & {"127.0.0.1:50051", "[::1]:50051"}


def test_ipv6_targets_are_bracketed() -> None:
    assert target("fd00::1", 5) == "[fd00::1]:5"


def test_static_and_dns_replicas_mix_and_commas_separate() -> None:
    sources = parse("a:1, unix:/run/engine.sock", "dns:///x:2", "[::1]:3")
    assert [type(source) for source in sources] == [StaticDiscovery, DnsDiscovery]


@pytest.mark.parametrize(
    "replica",
    ["host", "host:", "host:0", "host:70000", ":1", "http://h:1", "dns:///x", "dns:///:1"],
)
def test_nonsense_is_refused_by_name(replica: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        parse(replica)
