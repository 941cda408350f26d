"""Which replica writes: a Lease, by the elector of `kubernetes.aio`.

The library's lock lets connection errors escape, waits five minutes for an answer and never gives
a Lease back. `SafeLock` mends these: a lock that cannot be reached is a renewal that failed, so a
leader without a server steps down in time, and the next one finds a released Lease at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from quire_operator.errors import ConfigError
from quire_operator.runtime.kube import sleep_jittered

logger = logging.getLogger(__name__)

_FIRST = asyncio.FIRST_COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionTimes:
    """The times of a Lease, in seconds; those of Kubernetes' own components."""

    lease_s: float = 15.0
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


class SafeLock(LeaseLock):  # type: ignore[misc]  # the library is untyped
    """A Lease that answers "no" in time instead of raising."""

    def __init__(
        self, name: str, namespace: str, identity: str, client: ApiClient, timeout_s: float
    ) -> None:
        super().__init__(name, namespace, identity, client)
        self._timeout_s = timeout_s

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """Return (True, record), or (False, error)."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found: tuple[bool, Any] = await super().get(name, namespace)
                return found
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return False, ApiException(status=0, reason=f"cannot be reached: {error!r}")

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Return whether the Lease was made."""
        return await self._attempt(super().create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Return whether the Lease was renewed or taken."""
        return await self._attempt(super().update(name, namespace, updated_record))

    async def release(self) -> None:
        """Give the Lease back, if it is ours: nobody has to wait for it to run out."""
        await self.get(self.name, self.namespace)
        held = self.lease_reference
        if held is None or held.spec is None or held.spec.holder_identity != self.identity:
            return
        held.spec.holder_identity = None
        with contextlib.suppress(ApiException, aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self.api_instance.replace_namespaced_lease(self.name, self.namespace, held)
                logger.info("lease released name=%s identity=%s", self.name, self.identity)

    async def _attempt(self, request: Awaitable[bool]) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await request
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.warning("lease cannot be reached name=%s error=%r", self.name, error)
            return False


class LockLogFilter(logging.Filter):
    """Says in one line what the library says in a traceback; nothing of a lost race."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is worth a line."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ApiException):
            record.msg = f"{record.msg}: {error.status} {error.reason}"
            record.exc_info = None
            return bool(error.status != 409)
        return True


class Elector:
    """Runs `lead` while this replica holds the Lease; stands for election again when it lost it."""

    def __init__(
        self,
        lock: SafeLock,
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
