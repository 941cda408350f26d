"""The engine without its edges: sequences go in, step outputs come out."""

import time
from collections.abc import Callable, Collection

from quire_engine.config import EngineConfig
from quire_engine.core.messages import CoreStats, NewSequence, StepOutputs
from quire_engine.runner.plan import ModelRunner


class EngineCore:
    """Scheduler, KV cache and runner of one engine. Single-threaded.

    Usage:
        core.add(sequence)
        while core.has_work:
            outputs = core.step()
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        *,
        prefix_model: str,
        eos_token_ids: frozenset[int],
        max_num_batched_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None: ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute or say something."""
        raise NotImplementedError

    @property
    def max_model_len(self) -> int:
        """Longest prompt and completion together: the runner's, and what the cache can hold."""
        raise NotImplementedError

    @property
    def stats(self) -> CoreStats:
        raise NotImplementedError

    def add(self, new: NewSequence) -> None:
        """Queue a sequence.

        Raises:
            PromptTooLongError: it leaves no room for even one generated token.
            QueueFullError: `max_num_queued_reqs` are waiting already.
        """
        raise NotImplementedError

    def abort(self, seq_ids: Collection[int]) -> None:
        """Forget sequences and free their blocks; unknown ids are ignored. No output follows."""
        raise NotImplementedError

    def step(self) -> StepOutputs:
        """Compute one step. Call while `has_work`.

        A runner that raises fails the sequences of that step with FinishReason.ERROR; one that
        raises step after step has its exception passed on, since nothing will get better.
        """
        raise NotImplementedError

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no live sequence uses; `step` reports it."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise AssertionError if an invariant of scheduler or cache does not hold."""
        raise NotImplementedError


def default_max_num_batched_tokens(config: EngineConfig, device: str) -> int:
    """Return the token budget of a step: as configured, or what suits the kind of device."""
    raise NotImplementedError
