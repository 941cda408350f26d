"""Which replica writes: a Lease, by the elector of `kubernetes.aio`.

The lock is our own: the library's lets connection errors escape, waits five minutes for an answer,
cannot create a Lease (37.0) and never gives one back. Here a Lease that cannot be reached is a
renewal that failed, so that a leader without a server steps down in time.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubernetes.aio.client import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from quire_operator.errors import ConfigError, ConflictError, KubeError
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi, sleep_jittered
from quire_operator.runtime.resources import LEASES

logger = logging.getLogger(__name__)

_FIRST = asyncio.FIRST_COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionTimes:
    """The times of a Lease, in seconds; those of Kubernetes' own components."""

    lease_s: int = 15
    """How long a Lease that is not renewed still binds the others."""
    renew_s: float = 10.0
    """How long a leader tries to renew before it steps down."""
    retry_s: float = 2.0
    """Time between tries."""

    def __post_init__(self) -> None:
        if not self.lease_s > self.renew_s > 1.2 * self.retry_s or self.retry_s < 1.0:
            raise ConfigError(
                f"lease times {self.lease_s:g}/{self.renew_s:g}/{self.retry_s:g} s cannot work: "
                "need lease > renew deadline > 1.2 x retry period, and a retry period from 1 s on"
            )


class LeaseRecord(LeaderElectionRecord):  # type: ignore[misc]  # the library is untyped
    """What the library's elector knows of a Lease."""

    @classmethod
    def of(cls, lease: Manifest) -> "LeaseRecord":
        """Read a Lease; one that was given back has no holder."""
        spec = lease.get("spec") or {}
        duration = spec.get("leaseDurationSeconds")
        return cls(
            spec.get("holderIdentity") or None,
            None if duration is None else str(duration),
            spec.get("acquireTime"),
            spec.get("renewTime"),
        )


class LeaseLock(BaseLock):  # type: ignore[misc]  # the library is untyped
    """A Lease, for the library's elector: it answers "no" in time, and never raises."""

    def __init__(
        self, api: KubeApi, name: str, namespace: str, identity: str, timeout_s: float
    ) -> None:
        super().__init__(name, namespace, identity)
        self._api = api
        self._timeout_s = timeout_s
        self._lease: Manifest = {}

    async def get(self, name: str, namespace: str) -> tuple[bool, LeaseRecord | ApiException]:
        """Return (True, record), or (False, error)."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._lease = await self._api.get(LEASES, namespace, name)
        except (KubeError, TimeoutError) as error:
            status = error.status if isinstance(error, KubeError) else 0
            failure = ApiException(status=status, reason=str(error) or "no answer in time")
            # The library reads the status from the body alone.
            failure.body = json.dumps({"code": status})
            return False, failure
        return True, LeaseRecord.of(self._lease)

    async def create(self, name: str, namespace: str, election_record: LeaseRecord) -> bool:
        """Return whether the Lease was made."""
        self._lease = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": name, "namespace": namespace},
        }
        body = self._lease | {"spec": self._spec(election_record)}
        return await self._attempt(self._api.create(LEASES, body))

    async def update(self, name: str, namespace: str, updated_record: LeaseRecord) -> bool:
        """Return whether the Lease was renewed or taken: as it was when it was last read."""
        body = self._lease | {"spec": self._spec(updated_record)}
        return await self._attempt(self._api.replace(LEASES, body))

    async def release(self) -> None:
        """Give the Lease back, if it is ours: nobody has to wait for it to run out."""
        found, record = await self.get(self.name, self.namespace)
        if not found or record.holder_identity != self.identity:
            return
        body = self._lease | {"spec": self._lease["spec"] | {"holderIdentity": ""}}
        if await self._attempt(self._api.replace(LEASES, body)):
            logger.info("lease released lease=%s identity=%s", self.name, self.identity)

    def _spec(self, record: LeaseRecord) -> Manifest:
        held = self._lease.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_renewal = held.get("holderIdentity") == record.holder_identity
        return held | {
            "holderIdentity": record.holder_identity,
            "leaseDurationSeconds": int(record.lease_duration),
            # The library's own times are local ones that call themselves UTC.
            "acquireTime": held.get("acquireTime", now) if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": held.get("leaseTransitions", 0) + (0 if is_renewal else 1),
        }

    async def _attempt(self, request: Awaitable[Manifest]) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                self._lease = await request
        except ConflictError:
            # Another replica was faster.
            return False
        except (KubeError, TimeoutError) as error:
            logger.warning(
                "lease not written lease=%s error=%s", self.name, str(error) or "no answer in time"
            )
            return False
        return True


class Elector:
    """Runs `lead` while this replica holds the Lease; stands for election again when it lost it."""

    def __init__(
        self,
        lock: LeaseLock,
        times: ElectionTimes,
        lead: Callable[[], Awaitable[None]],
        on_change: Callable[[bool], None],
    ) -> None:
        self._lock = lock
        self._times = times
        self._lead = lead
        self._on_change = on_change

    async def run(self) -> None:
        """Stand for election until cancelled. Never returns while somebody else could lead."""
        while True:
            await self._one_term()
            await sleep_jittered(self._times.retry_s)

    async def _one_term(self) -> None:
        """Stand until elected, lead until the Lease is lost.

        The library starts leading in a task of its own, which it neither awaits nor watches.
        """
        leading: list[asyncio.Task[None]] = []

        async def started() -> None:
            task = asyncio.current_task()
            assert task is not None, "the library runs this as a task"
            leading.append(task)
            self._on_change(True)
            logger.info("leading lease=%s identity=%s", self._lock.name, self._lock.identity)
            try:
                await self._lead()
            finally:
                self._on_change(False)

        async def stopped() -> None:
            logger.warning("lease lost lease=%s", self._lock.name)

        config = Config(
            self._lock,
            lease_duration=self._times.lease_s,
            renew_deadline=self._times.renew_s,
            retry_period=self._times.retry_s,
            onstarted_leading=started,
            onstopped_leading=stopped,
        )
        election = asyncio.create_task(LeaderElection(config).run(), name="election")
        try:
            while not election.done() and not any(task.done() for task in leading):
                await asyncio.wait([election, *leading], timeout=1.0, return_when=_FIRST)
        finally:
            for task in (election, *leading):
                task.cancel()
            results = await asyncio.gather(election, *leading, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
