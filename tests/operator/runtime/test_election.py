import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from fake_kube import FakeKube
from operator_runs import eventually
from quire_operator.errors import ConfigError, UnavailableError
from quire_operator.runtime.election import ElectionTimes, Elector, LeaseLock
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import LEASES

SHORT = ElectionTimes(lease_s=3, renew_s=2.0, retry_s=1.0)
LONG = ElectionTimes(lease_s=120, renew_s=60.0, retry_s=1.0)
"""A lease that no test outlasts."""


class Replica:
    """One stander for election."""

    def __init__(self, kube: FakeKube, name: str, times: ElectionTimes = LONG) -> None:
        self.lock = LeaseLock(cast(KubeApi, kube), "lease", "default", name, timeout_s=10.0)
        self.is_leading = False
        self.is_working = False
        self.elector = Elector(self.lock, times, self.lead, self.on_change)
        self.breaks = False

    def on_change(self, is_leading: bool) -> None:
        self.is_leading = is_leading

    async def lead(self) -> None:
        if self.breaks:
            raise RuntimeError("broke")
        self.is_working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_working = False


@contextlib.asynccontextmanager
async def standing(replica: Replica) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(replica.elector.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def holder(kube: FakeKube) -> Any:
    return kube.live(LEASES, "lease")["spec"]["holderIdentity"]


async def test_one_of_two_leads_and_a_released_lease_is_taken_at_once() -> None:
    kube = FakeKube()
    one, other = Replica(kube, "one"), Replica(kube, "other")
    async with standing(other) as task:
        await eventually("other leads", lambda: other.is_working)
        async with standing(one):
            await asyncio.sleep(1.5 * LONG.retry_s)
            assert not one.is_leading
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not other.is_working
            await other.lock.release()
            assert holder(kube) == ""
            await eventually("one leads", lambda: one.is_working)
            assert kube.live(LEASES, "lease")["spec"]["leaseTransitions"] >= 2


async def test_a_killed_leader_is_followed_when_its_lease_ran_out() -> None:
    kube = FakeKube()
    dead, heir = Replica(kube, "dead", SHORT), Replica(kube, "heir", SHORT)
    async with standing(dead):
        await eventually("dead leads", lambda: dead.is_working)
    began_at = time.monotonic()
    async with standing(heir):
        await eventually("heir leads", lambda: heir.is_working)
        assert time.monotonic() - began_at >= SHORT.lease_s


async def test_a_leader_without_a_server_stops_working_in_time_and_comes_back() -> None:
    kube = FakeKube()
    times = ElectionTimes(lease_s=60, renew_s=2.0, retry_s=1.0)
    replica = Replica(kube, "one", times)
    async with standing(replica):
        await eventually("it leads", lambda: replica.is_working)
        kube.fail = lambda *_: UnavailableError("away")
        await eventually("it steps down", lambda: not replica.is_working, limit_s=times.lease_s)
        assert not replica.is_leading
        kube.fail = lambda *_: None
        await eventually("it leads again", lambda: replica.is_working)


async def test_a_renewal_keeps_the_time_of_the_acquisition() -> None:
    kube = FakeKube()
    replica = Replica(kube, "one")
    async with standing(replica):
        await eventually("it leads", lambda: replica.is_working)
        first = kube.live(LEASES, "lease")["spec"]
        await eventually("a renewal", lambda: kube.live(LEASES, "lease")["spec"] != first)
        second = kube.live(LEASES, "lease")["spec"]

    assert second["acquireTime"] == first["acquireTime"]
    assert second["renewTime"] > first["renewTime"]
    assert second["leaseTransitions"] == first["leaseTransitions"]


async def test_work_that_breaks_ends_the_process() -> None:
    replica = Replica(FakeKube(), "one")
    replica.breaks = True
    async with standing(replica) as task:
        with pytest.raises(RuntimeError, match="broke"):
            await asyncio.shield(task)


async def test_a_lease_of_another_is_not_released() -> None:
    kube = FakeKube()
    one, other = Replica(kube, "one"), Replica(kube, "other")
    async with standing(one):
        await eventually("one leads", lambda: one.is_working)
        await other.lock.release()
        assert holder(kube) == "one"


def test_times_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="lease > renew deadline"):
        ElectionTimes(lease_s=10, renew_s=10.0, retry_s=2.0)
