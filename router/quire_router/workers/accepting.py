"""Accepts connections from the socket that all workers have, and leaves some to the others.

One socket for all, inherited, and not one for each (SO_REUSEPORT): there a connection belongs to a
worker before that has accepted it, so that it waits for one that is busy and hangs with one that
hangs. Here whoever is free takes it, and what nobody has taken outlives every worker.

But whoever is awake is free. A worker would take a burst alone before the others have woken up, and
keep these connections for as long as clients do; so one with more than another waits a moment.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from quire_router.workers.share import WorkerShare

logger = logging.getLogger(__name__)

YIELD_S = 0.001
MAX_YIELDS = 3
OUT_OF_FILES_S = 0.5


class Acceptor:
    """Accepts while `run` runs."""

    def __init__(
        self,
        listener: socket.socket,
        share: WorkerShare,
        protocol: Callable[[], asyncio.Protocol],
        num_open: Callable[[], int],
    ) -> None:
        """`num_open` says how many connections of this worker's are open."""
        self._listener = listener
        self._share = share
        self._protocol = protocol
        self._num_open = num_open

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            await self._give_way()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionError:
                continue  # it was gone before it was accepted
            except OSError as error:
                logger.error("cannot accept connections error=%s", error)
                await asyncio.sleep(OUT_OF_FILES_S)
                continue
            with contextlib.suppress(OSError):  # likewise
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.connect_accepted_socket(self._protocol, connection)

    async def _give_way(self) -> None:
        for _ in range(MAX_YIELDS):
            if not self._share.is_crowded(self._num_open()):
                return
            await asyncio.sleep(YIELD_S)
