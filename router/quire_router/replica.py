"""One engine address: its connection, over reconnects, and all that is known about it."""

import asyncio
import enum
import logging
import time
from collections.abc import Callable

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.prefix import prefix_seed
from quire_router.backoff import Backoff
from quire_router.breaker import Breaker
from quire_router.connection import run_connection
from quire_router.generation import TokenizerFiles
from quire_router.pool_config import PoolConfig
from quire_router.prefix_index import PrefixIndex
from quire_router.replica_account import Account
from quire_router.session import ConnectionLostError, Session, Sink
from quire_router.tokenizer_store import TokenizerStore

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 0.25
MAX_RECONNECT_S = 2.0


class ReplicaState(enum.Enum):
    """Whether a replica can be sent requests, and why not."""

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    """It says itself that it does not serve."""
    UNRESPONSIVE = "unresponsive"
    """It has said nothing for a while, or nothing good."""


class Replica:
    """One engine, as the router sees it. `run` keeps it connected."""

    def __init__(
        self,
        address: str,
        config: PoolConfig,
        tokenizers: TokenizerStore,
        on_state: Callable[["Replica"], None],
        account: Account,
    ) -> None:
        self.address = address
        self.account = account
        self.info = pb.ModelInfo()
        self.tokenizer: TokenizerFiles | None = None
        self.load = account.new_load()
        self.index = PrefixIndex()
        self.breaker = Breaker(max_failures=config.breaker_failures, open_s=config.breaker_open_s)
        self.counts = account.counts
        self.last_chosen = 0
        self.is_retired = False
        """No longer wanted: gets nothing new, ends when it is idle."""
        self.state = ReplicaState.CONNECTING
        self._config = config
        self._tokenizers = tokenizers
        self._on_state = on_state
        self._session: Session | None = None
        self._backoff = Backoff(first_s=0.1, max_s=MAX_RECONNECT_S)
        self._is_closing = False
        self._heard_at = 0.0
        self._is_heard = False
        self._is_stuck = False
        self._is_draining = False
        self._unserving_since: float | None = None

    @property
    def incarnation(self) -> tuple[str, int]:
        """Names this connection to the engine; the next one has another name."""
        return self.address, self.counts.num_connections

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight there."""
        return self._session is None or len(self._session) == 0

    @property
    def heard_at(self) -> float:
        """When its last load report came, by the monotonic clock; 0 before the first."""
        return self._heard_at

    def prefix_seed(self, cache_salt: str) -> int:
        """Return the seed of its block hashes for requests with this salt."""
        return prefix_seed(self.info.prefix_model, cache_salt=cache_salt)

    def submit(self, request: pb.GenerateRequest, sink: Sink) -> int:
        """Send a request; return the alias to abort it by. Only while READY."""
        assert self._session is not None, "a request was sent to a replica without a connection"
        return self._session.add(request, sink)

    def abort(self, alias: int) -> None:
        """Stop a request, unless the connection that carried it has ended."""
        if self._session is not None:
            self._session.abort(alias)

    def sinks(self) -> list[Sink]:
        """Return who waits for something from it."""
        return self._session.sinks if self._session is not None else []

    def refuse_work(self) -> None:
        """The engine said that it is draining, before its load report did."""
        self._is_draining = True
        self._update()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while not self._is_closing:
            self._end(await self._connection())
            await asyncio.sleep(self._backoff.next_s())

    def prepare_close(self) -> None:
        """Let `run` end; it must be cancelled too.

        Being cancelled is not enough: a task group that is just failing swallows it (Python 3.11).
        """
        self._is_closing = True

    def close(self) -> None:
        """Give up the connection and what is on it, after `run` has ended."""
        self._end("the router is shutting down")

    # Observer of the connection.

    def on_connected(self, info: pb.ModelInfo, tokenizer: TokenizerFiles, session: Session) -> None:
        if info.epoch != self.info.epoch:
            self.breaker.reset()
        self.info = info
        self.tokenizer = tokenizer
        self.counts.num_connections += 1
        self.index.connect(
            epoch=info.epoch, num_blocks=info.num_blocks, is_enabled=info.prefix_caching
        )
        self._heard_at = time.monotonic()
        self._session = session

    def on_load(self, load: pb.Load) -> None:
        if load.epoch != self.info.epoch:
            raise ConnectionLostError(
                f"the engine restarted: epoch {load.epoch} after {self.info.epoch}"
            )
        self._heard_at = time.monotonic()
        self.load.reported(load, self._heard_at)
        # The first report is the proof that a new connection works.
        if not self._is_heard or load.draining != self._is_draining:
            self._is_heard = True
            self._is_draining = load.draining
            self._update()

    def on_health(self, *, is_serving: bool) -> None:
        if is_serving:
            self._unserving_since = None
        elif self._unserving_since is None:
            self._unserving_since = time.monotonic()
        self._update()

    def on_kv_subscribed(self) -> None:
        self.counts.num_kv_subscriptions += 1
        self.index.subscribe()

    def on_kv_batch(self, batch: pb.KvEventBatch) -> None:
        self.index.apply(batch, time.monotonic())

    async def _connection(self) -> str:
        """Connect and stay; return why it ended."""
        reason = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_pulse())
                await run_connection(self.address, self._tokenizers, self)
        except* ConnectionLostError as group:
            reason = str(_first(group))
        except* Exception as group:
            # A bug of ours: the other replicas still serve, and this one may again.
            logger.exception("replica failed replica=%s", self.address)
            reason = f"internal error: {_first(group)}"
        return reason

    async def _watch_pulse(self) -> None:
        expected = time.monotonic() + WATCHDOG_INTERVAL_S
        while True:
            await asyncio.sleep(WATCHDOG_INTERVAL_S)
            now = time.monotonic()
            # When this process itself was stopped for a while, the engine was not silent.
            self._heard_at += max(0.0, now - expected)
            expected = now + WATCHDOG_INTERVAL_S
            if self._session is not None:
                self._check_pulse(now)
                self.index.expire(now)

    def _check_pulse(self, now: float) -> None:
        silence_s = now - self._heard_at
        unserving_s = 0.0
        if self._unserving_since is not None and not self._is_draining:
            unserving_s = now - self._unserving_since
        if silence_s > self._config.lost_after_s:
            raise ConnectionLostError(f"no load report for {silence_s:.1f} s")
        if unserving_s > self._config.lost_after_s:
            raise ConnectionLostError(f"unhealthy for {unserving_s:.1f} s")
        is_stuck = max(silence_s, unserving_s) > self._config.unresponsive_after_s
        if is_stuck != self._is_stuck:
            self._is_stuck = is_stuck
            self._update()

    def _end(self, reason: str) -> None:
        session, self._session = self._session, None
        self._is_heard = self._is_stuck = self._is_draining = False
        self._unserving_since = None
        self._update()
        if session is None:
            logger.debug("replica unreachable replica=%s reason=%s", self.address, reason)
            return
        logger.log(
            logging.INFO if self._is_closing else logging.WARNING,
            "replica lost replica=%s num_requests=%d reason=%s",
            self.address,
            len(session),
            reason,
        )
        session.lose(reason)
        self.load = self.account.new_load()

    def _update(self) -> None:
        state = self._current_state()
        if state is self.state:
            return
        logger.info("replica %s replica=%s was=%s", state.value, self.address, self.state.value)
        self.state = state
        if state is ReplicaState.READY:
            self._backoff.reset()
        self._on_state(self)

    def _current_state(self) -> ReplicaState:
        if self._session is None or not self._is_heard:
            return ReplicaState.CONNECTING
        if self._is_draining:
            return ReplicaState.DRAINING
        if self._is_stuck:
            return ReplicaState.UNRESPONSIVE
        if self._unserving_since is not None:
            return ReplicaState.UNHEALTHY
        return ReplicaState.READY


def is_ready(replica: Replica) -> bool:
    """Whether a replica can be sent requests, and is to be."""
    return replica.state is ReplicaState.READY and not replica.is_retired


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in nested groups that is not a group."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
