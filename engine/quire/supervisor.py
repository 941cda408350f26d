"""A router and its engines as child processes: started together, kept alive, drained in order.

Ctrl-C or SIGTERM    router: no new connections, finish what is in flight; then the engines
a second one         everything is killed at once
SIGKILL of this      the kernel kills the children (`launcher`)
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence

from quire.child import Child, ChildFailedError
from quire.console import Console

KILLED_STATUS = 130
DRAIN_MARGIN_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs one router and N engines until a signal, or until one of them cannot start."""

    def __init__(
        self,
        router: Child,
        engines: Sequence[Child],
        console: Console,
        *,
        on_ready: Callable[[], Awaitable[None]],
        shutdown_timeout_s: float,
    ) -> None:
        self._router = router
        self._engines = engines
        self._console = console
        self._on_ready = on_ready
        self._grace_s = shutdown_timeout_s + DRAIN_MARGIN_S
        self._num_signals = 0
        self._interrupted = asyncio.Event()

    async def run(self) -> int:
        """Return the exit status: 0 drained, 2 a wrong configuration, 1 no start, 130 killed."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt)
        children = [asyncio.create_task(child.run()) for child in self._children]
        announcer = asyncio.create_task(self._announce())
        stopper = asyncio.create_task(self._interrupted.wait())
        try:
            # Children only return once stopped: a task of theirs that is done has failed.
            await asyncio.wait([stopper, *children], return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
            results = await asyncio.gather(*children, return_exceptions=True)
            return self._status(results)
        finally:
            for child in self._children:
                child.kill()
            for task in (announcer, stopper, *children):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(announcer, stopper, *children, return_exceptions=True)

    @property
    def _children(self) -> list[Child]:
        return [self._router, *self._engines]

    def _interrupt(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._console.say("Stopping: requests in flight finish; again to stop at once.")
            self._interrupted.set()
            return
        for child in self._children:
            child.kill()

    async def _drain(self) -> None:
        await self._router.stop(self._grace_s)
        await asyncio.gather(*(engine.stop(self._grace_s) for engine in self._engines))

    async def _announce(self) -> None:
        await self._router.ready.wait()
        ready = [asyncio.create_task(engine.ready.wait()) for engine in self._engines]
        try:
            await asyncio.wait(ready, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ready:
                task.cancel()
        await self._on_ready()

    def _status(self, results: Sequence[BaseException | None]) -> int:
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if not isinstance(failure, ChildFailedError):
                raise failure
            self._console.say(f"error: {failure}")
        if failures:
            return max(f.status for f in failures if isinstance(f, ChildFailedError))
        return 0 if self._num_signals < 2 else KILLED_STATUS
