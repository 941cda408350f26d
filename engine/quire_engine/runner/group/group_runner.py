"""A runner of several ranks: this process's own, and workers that launch what it launches."""

import weakref
from collections.abc import Sequence
from typing import Any

from quire_engine.errors import QuireError
from quire_engine.runner.group.wire import READY, load_function
from quire_engine.runner.group.workers import Workers
from quire_engine.runner.plan import ModelRunner, PendingStep, StepPlan, StepResult


class GroupStep:
    """A step that all ranks compute."""

    def __init__(self, own: PendingStep, workers: Workers) -> None:
        self._own, self._workers = own, workers

    def wait(self) -> StepResult:
        """Return what it computed; see `PendingStep.wait`."""
        with self._workers.waiting():
            return self._own.wait()


class GroupRunner:
    """A `ModelRunner` on several GPUs. What it does not know itself, its own rank's runner does."""

    def __init__(self, own: ModelRunner, workers: Workers) -> None:
        self._own, self._workers = own, workers
        self._end = weakref.finalize(self, workers.close)

    @property
    def num_blocks(self) -> int:
        return self._own.num_blocks

    @property
    def max_model_len(self) -> int:
        return self._own.max_model_len

    @property
    def max_num_batched_tokens(self) -> int:
        return self._own.max_num_batched_tokens

    @property
    def device(self) -> str:
        return self._own.device

    @property
    def max_num_in_flight(self) -> int:
        return self._own.max_num_in_flight

    @property
    def worker_pids(self) -> Sequence[int]:
        return self._workers.pids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin one step on all ranks; see `ModelRunner.launch`.

        After a failure the ranks are at different steps, so that every further launch fails, too.
        """
        with self._workers.waiting():
            self._workers.tell(plan)
            try:
                return GroupStep(self._own.launch(plan), self._workers)
            except Exception as error:
                self._workers.fail(QuireError(f"a step failed on the first rank: {error!r}"))
                raise

    def check_alive(self) -> None:
        """Raise if a worker is gone.

        Raises:
            QuireError: nothing more can be computed.
        """
        self._workers.check()

    def close(self) -> None:
        """End the workers."""
        self._end()


def build_group(build: str, argument: Any, size: int) -> GroupRunner:
    """Start the workers, and build all ranks' runners with `build` ("module:function").

    Raises:
        ConfigError: a rank cannot run as configured.
        QuireError: a rank failed in any other way.
    """
    workers = Workers(build, argument, size)
    try:
        own = load_function(build)(argument, workers)
        workers.reach(READY)
    except BaseException:
        workers.close()
        raise
    workers.serve()
    return GroupRunner(own, workers)
