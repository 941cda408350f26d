"""The replicas that there are: discoveries say which, each keeps itself connected."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping

from quire_router.discovery import Discovery
from quire_router.pool_config import PoolConfig
from quire_router.replica import Replica
from quire_router.replica_account import Account
from quire_router.tokenizer_store import TokenizerStore

logger = logging.getLogger(__name__)

RETIRE_POLL_S = 0.1
DISCOVERY_RETRY_S = 1.0


class Pool:
    """All replicas by address. One that disappears ends its requests before it goes."""

    def __init__(
        self,
        config: PoolConfig,
        discoveries: Iterable[Discovery],
        on_state: Callable[[Replica], None],
        open_account: Callable[[str], Account] | None = None,
    ) -> None:
        """`open_account` says where to keep what is counted of a replica, by its address."""
        self._config = config
        self._discoveries = list(discoveries)
        self._on_state = on_state
        self._open_account = open_account
        self._tokenizers = TokenizerStore()
        self._wanted: dict[int, frozenset[str]] = {}
        self._replicas: dict[str, Replica] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_synced(self) -> bool:
        """Whether every discovery has named its replicas once, be it none."""
        return len(self._wanted) == len(self._discoveries)

    @property
    def replicas(self) -> list[Replica]:
        """Every replica, also those that are not connected or about to go."""
        return list(self._replicas.values())

    @property
    def by_address(self) -> Mapping[str, Replica]:
        """Return the same replicas by their addresses."""
        return self._replicas

    async def start(self) -> None:
        for number, discovery in enumerate(self._discoveries):
            self._start(self._follow(number, discovery))

    async def close(self) -> None:
        """Close every connection; what is in flight is lost."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._replicas.clear()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, number: int, discovery: Discovery) -> None:
        while True:
            try:
                async for targets in discovery.watch():
                    self._wanted[number] = targets
                    self._reconcile()
                return
            except Exception:
                logger.exception("discovery failed")
            await asyncio.sleep(DISCOVERY_RETRY_S)

    def _reconcile(self) -> None:
        wanted: set[str] = set().union(*self._wanted.values())
        for address in sorted(wanted):
            if address in self._replicas:
                self._replicas[address].is_retired = False
            else:
                self._add(address)
        for address, replica in self._replicas.items():
            if address not in wanted and not replica.is_retired:
                logger.info("replica retired replica=%s", address)
                replica.is_retired = True

    def _add(self, address: str) -> None:
        logger.info("replica found replica=%s", address)
        account = self._open_account(address) if self._open_account else Account()
        replica = Replica(address, self._config, self._tokenizers, self._on_state, account)
        self._replicas[address] = replica
        self._start(self._keep(replica))

    async def _keep(self, replica: Replica) -> None:
        """Run a replica until it is retired and idle."""
        run = asyncio.create_task(replica.run())
        try:
            while True:
                await asyncio.sleep(RETIRE_POLL_S)
                if replica.is_retired and replica.is_idle:
                    break
            del self._replicas[replica.address]
            replica.account.close()
        finally:
            replica.prepare_close()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            replica.close()
