"""One worker's hold on what all workers share."""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prometheus_client import PLATFORM_COLLECTOR, CollectorRegistry

from quire_router.load import ReplicaLoad
from quire_router.replica import Replica
from quire_router.replica_account import Account
from quire_router.workers.load import Others, SharedLoad
from quire_router.workers.memory import Flag, Slot, Status, WorkerMemory
from quire_router.workers.process_metrics import WorkersCollector
from quire_router.workers.prompts import SentPrompts
from quire_router.workers.rows import Row, Rows, RowState
from quire_router.workers.sources import going_on
from quire_router.workers.survey import Survey
from quire_router.workers.values import Adopter, SharedValues
from quire_router.workers.views import Views, WorkerView

BEAT_S = 1.0
"""A worker that has not published for so long is busy, or hangs."""
JOIN_POLL_S = 0.02
MAX_JOIN_S = 5.0


class SharedAccount(Account):
    """Counts, history and load of a replica in a row that others read."""

    def __init__(self, row: Row, others: Others) -> None:
        self.row = row
        self.counts = row.counts
        self.trail = row.trail
        self._others = others

    def new_load(self) -> ReplicaLoad:
        return SharedLoad(self.row, self._others)

    def close(self) -> None:
        self.row.clear_load()
        self.row.set_state(RowState.GONE)


class WorkerShare:
    """The slot of a worker, which goes on where the slot's last worker ended, and the others'."""

    def __init__(self, memory: WorkerMemory, number: int) -> None:
        self._memory = memory
        self._slot = slot = memory.slots[number]
        self._rows = Rows(slot)
        self._prompts = SentPrompts(slot)
        self._views = Views(slot)
        others = [other for other in memory.slots if other is not slot]
        self._other_slots = others
        self._other_rows = [Rows(other) for other in others]
        self._versions: list[int] = []
        self._beats = [(0, 0.0)] * len(others)
        self._heard = [
            (rows, SentPrompts(other)) for rows, other in zip(self._other_rows, others, strict=True)
        ]
        self._others: dict[str, Others] = {}
        self.survey = Survey(memory)
        self.values = SharedValues(memory, number)
        self._rows.release_all()
        self.values.clear_gauges()
        self._ended_sources = self._views.last().sources
        self._views.publish(WorkerView(sources=self._ended_sources))
        for status in (Status.FLAGS, Status.NUM_READY, Status.NUM_OPEN):
            slot.words[status] = 0
        slot.words[Status.PID] = os.getpid()

    def open_account(self, address: str) -> Account:
        """Return where to keep what is counted of a replica; without a row no other sees it."""
        row = self._rows.claim(address)
        if row is None:
            return Account()
        others = self._others.setdefault(address, Others())
        others.rows = self._rows_of(address)
        return SharedAccount(row, others)

    def decision_numbers(self) -> Iterator[int]:
        """Yield numbers that no decision of any worker has, larger than all that are known."""
        slots = self._memory.slots
        while True:
            last = max(slot.words[Status.NUM_DECISIONS] for slot in slots)
            self._slot.words[Status.NUM_DECISIONS] = last + 1
            yield (last + 1) * len(slots) + self._slot.number

    def sent(self, replica: Replica, hashes: Sequence[int]) -> None:
        """Tell the others of a prompt."""
        if hashes and isinstance(replica.account, SharedAccount):
            self._prompts.add(replica.account.row.number, hashes)

    def listen(self, replicas: Mapping[str, Replica]) -> None:
        """Take in what the others have told since the last call, before a decision."""
        versions = [slot.words[Status.ROWS_VERSION] for slot in self._other_slots]
        if versions != self._versions:
            self._versions = versions
            for address, others in self._others.items():
                others.rows = self._rows_of(address)
        for rows, prompts in self._heard:
            for number, hashes in prompts.new():
                replica = replicas.get(rows.address(number))
                if replica is not None:
                    replica.index.speculate(hashes, time.monotonic())

    def publish(self, view: WorkerView, *, is_synced: bool, num_ready: int) -> None:
        """Let the others see this worker's replicas and requests, and that it is alive."""
        words = self._slot.words
        sources = going_on(view.sources, self._ended_sources)
        self._views.publish(replace(view, sources=sources))
        words[Status.NUM_READY] = num_ready
        if is_synced:
            words[Status.FLAGS] |= Flag.SYNCED
        words[Status.BEATS] += 1
        self._note_beats()

    def registry(self) -> CollectorRegistry:
        """Return a registry that shows what all workers have."""
        registry = CollectorRegistry()
        for collector in (
            Adopter(self.values, registry),
            WorkersCollector(self._memory),
            PLATFORM_COLLECTOR,
        ):
            registry.register(collector)
        return registry

    def is_crowded(self, num_open: int) -> bool:
        """Note how many connections are open here; whether a worker that is free has fewer."""
        self._slot.words[Status.NUM_OPEN] = num_open
        now = time.monotonic()
        return any(
            slot.words[Status.NUM_OPEN] < num_open
            for slot, (_, at) in zip(self._other_slots, self._beats, strict=True)
            if now - at < BEAT_S and Flag.SERVING in slot.flags
        )

    def serve(self) -> None:
        """Say that this worker accepts connections."""
        self._slot.words[Status.FLAGS] |= Flag.SERVING

    async def joined(self) -> None:
        """Wait until this worker knows what those do that serve already, for a while at most."""
        until = time.monotonic() + MAX_JOIN_S
        while not self._has_joined() and time.monotonic() < until:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(JOIN_POLL_S)

    @property
    def are_synced(self) -> bool:
        """Whether every worker that serves knows which replicas there are."""
        serving = self._serving()
        return bool(serving) and all(Flag.SYNCED in slot.flags for slot in serving)

    @property
    def are_ready(self) -> bool:
        """Whether every worker that serves can send requests to a replica."""
        serving = self._serving()
        return bool(serving) and all(slot.num_ready for slot in serving)

    def _note_beats(self) -> None:
        for number, slot in enumerate(self._other_slots):
            beats = slot.words[Status.BEATS]
            if beats != self._beats[number][0]:
                self._beats[number] = beats, time.monotonic()

    def _has_joined(self) -> bool:
        num_ready = max((slot.num_ready for slot in self._serving()), default=0)
        is_synced = Flag.SYNCED in self._slot.flags or not self.are_synced
        return is_synced and self._slot.num_ready >= num_ready

    def _serving(self) -> list[Slot]:
        return [slot for slot in self._memory.live if Flag.SERVING in slot.flags]

    def _rows_of(self, address: str) -> list[Row]:
        found = (rows.by_address().get(address) for rows in self._other_rows)
        return [row for row in found if row is not None]
