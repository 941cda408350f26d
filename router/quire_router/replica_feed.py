"""`/v1/replicas`: what there is to see of the replicas, once or as server-sent events.

A stream begins with the whole (`snapshot`); every second an `update` follows, without the history
and with those requests alone that are new or have changed. However many look, a second's replicas
are put into JSON once.
"""

import asyncio
import time
from collections.abc import AsyncIterator

import orjson

from quire_router.generation import Reports
from quire_router.lifecycle import Lifecycle

INTERVAL_S = 1.0
RECONNECT_MS = 1000


class ReplicaFeed:
    """What the routes send; ends with the router."""

    def __init__(self, reports: Reports, lifecycle: Lifecycle) -> None:
        self._reports = reports
        self._lifecycle = lifecycle
        self._tick = 0
        self._replicas = orjson.Fragment(b"[]")

    def snapshot(self) -> bytes:
        """Return the whole as JSON."""
        replicas = orjson.Fragment(orjson.dumps(self._reports.replicas(with_history=True)))
        return self._body(replicas, since=0)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield a snapshot and an update every second, until the router stops."""
        seen = self._reports.revision
        yield b"retry: %d\n" % RECONNECT_MS + _event(b"snapshot", self.snapshot())
        while not self._lifecycle.is_stopping:
            await _next_tick()
            since, seen = seen, self._reports.revision
            yield _event(b"update", self._body(self._current_replicas(), since=since))

    def _current_replicas(self) -> orjson.Fragment:
        tick = _tick()
        if tick != self._tick:
            self._tick = tick
            self._replicas = orjson.Fragment(orjson.dumps(self._reports.replicas()))
        return self._replicas

    def _body(self, replicas: orjson.Fragment, *, since: int) -> bytes:
        return orjson.dumps(
            {
                "at": round(time.time(), 3),
                "parked": self._reports.num_parked,
                "replicas": replicas,
                "requests": self._reports.requests(since),
            }
        )


def _tick() -> int:
    """Return the number of the current interval, the same for all who look."""
    return int(time.monotonic() / INTERVAL_S)


async def _next_tick() -> None:
    """Wait for the next interval to begin."""
    due = (_tick() + 1) * INTERVAL_S
    # Event loops round: a sleep may end a little early, still in the interval that was sent.
    while (left_s := due - time.monotonic()) > 0:  # noqa: ASYNC110 - nothing sets an event
        await asyncio.sleep(left_s)


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)
