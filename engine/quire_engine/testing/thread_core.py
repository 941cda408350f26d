"""An EngineCore in a thread: what CoreClient is for a process, without the process."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

from quire_engine.config import EngineConfig
from quire_engine.core.engine_core import (
    EngineCore,
    refusal as refusal_output,
)
from quire_engine.core.messages import (
    CoreReady,
    NewSequence,
    SequenceOutput,
    StepOutputs,
)
from quire_engine.errors import EngineDeadError, RequestError
from quire_engine.runner.plan import ModelRunner
from quire_engine.server.model_card import ModelCard

logger = logging.getLogger(__name__)


class ThreadCore:
    """Runs a core in a thread of its own; belongs to the event loop that made it."""

    def __init__(
        self,
        core: EngineCore,
        ready: CoreReady,
        *,
        refusal: Callable[[], RequestError | None] = lambda: None,
        on_step: Callable[[StepOutputs], None] = lambda _step: None,
    ) -> None:
        """Start the thread.

        `refusal` may return an error that every new sequence is refused with; `on_step` sees each
        step first, on the event loop, and may change it.
        """
        self.ready = ready
        self.error: EngineDeadError | None = None
        self._core = core
        self._refusal = refusal
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outputs: asyncio.Queue[StepOutputs | None] = asyncio.Queue()
        self._is_stepping = False
        self._is_ended = False
        self._heard_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._thread.start()

    @property
    def last_progress_s(self) -> float:
        return time.monotonic() - self._heard_at if self.is_stepping else 0.0

    @property
    def is_stepping(self) -> bool:
        return self._is_stepping

    def send(self, *sequences: NewSequence) -> None:
        if self.error is not None:
            raise self.error
        if not self._is_stepping:
            self._is_stepping, self._heard_at = True, time.monotonic()
        self._commands.put(lambda: self._add(sequences))

    def abort(self, seq_ids: Sequence[int]) -> None:
        self._commands.put(lambda: self._abort(seq_ids))

    async def reset_prefix_cache(self) -> None:
        if self.error is not None:
            raise self.error
        done = asyncio.Event()

        def reset() -> None:
            self._core.reset_prefix_cache()
            self._loop.call_soon_threadsafe(done.set)

        self._commands.put(reset)
        await done.wait()

    async def outputs(self) -> AsyncIterator[StepOutputs]:
        while (step := await self._outputs.get()) is not None:
            yield step
        if self.error is not None:
            raise self.error

    def die(self, reason: str) -> None:
        """Be dead, as a killed process would be: nothing more is heard of it."""
        self.error = EngineDeadError(f"the core process {reason}")
        self._end()

    async def close(self, *, timeout_s: float = 5.0) -> None:
        self._end()
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _end(self) -> None:
        self._is_ended = True
        self._commands.put(None)
        self._outputs.put_nowait(None)

    def _run(self) -> None:
        try:
            while self._obey() and not self._is_ended:
                if self._core.has_work:
                    self._tell(self._core.step())
        except Exception:  # what would end a core process
            logger.exception("core failed")
            self._loop.call_soon_threadsafe(self.die, "ended with exit status 1")

    def _obey(self) -> bool:
        """Carry out commands, waiting for one if there is nothing else to do."""
        while True:
            try:
                command = self._commands.get(block=not self._core.has_work)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _add(self, sequences: Sequence[NewSequence]) -> None:
        refused: list[SequenceOutput] = []
        for sequence in sequences:
            try:
                if (error := self._refusal()) is not None:
                    raise error
                self._core.add(sequence)
            except RequestError as error:
                refused.append(refusal_output(sequence.seq_id, error))
        if refused:
            self._tell(StepOutputs(outputs=refused, stats=self._core.stats))

    def _abort(self, seq_ids: Sequence[int]) -> None:
        self._core.abort(seq_ids)
        if not self._core.has_work:  # no step follows that would tell what is free
            self._tell(StepOutputs(stats=self._core.stats))

    def _tell(self, step: StepOutputs) -> None:
        self._loop.call_soon_threadsafe(self._hear, step)

    def _hear(self, step: StepOutputs) -> None:
        self._heard_at = time.monotonic()
        self._is_stepping = bool(step.stats.num_running or step.stats.num_waiting)
        if not self._is_ended:
            self._on_step(step)
            self._outputs.put_nowait(step)


def start_thread_core(
    config: EngineConfig,
    runner: ModelRunner,
    card: ModelCard,
    *,
    refusal: Callable[[], RequestError | None] = lambda: None,
    on_step: Callable[[StepOutputs], None] = lambda _step: None,
) -> ThreadCore:
    """Start a core as a core process would build it; the hooks are ThreadCore's."""
    core = EngineCore(
        config,
        runner,
        prefix_model=card.prefix_model,
        eos_token_ids=frozenset(card.eos_token_ids),
    )
    return ThreadCore(core, core.describe(), refusal=refusal, on_step=on_step)
