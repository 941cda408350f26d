"""The engine without its edges: sequences go in, step outputs come out."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from quire_engine.config import EngineConfig
from quire_engine.core.kv_cache import KvCache
from quire_engine.core.messages import (
    CoreReady,
    CoreStats,
    FinishReason,
    NewSequence,
    SequenceOutput,
    StepOutputs,
)
from quire_engine.core.meter import StepMeter
from quire_engine.core.scheduler import Scheduler
from quire_engine.errors import ConfigError, RequestError
from quire_engine.runner.plan import ModelRunner, PendingStep, StepPlan, StepProfiler

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3
"""A runner that fails this many steps one after another will not recover."""


@dataclass(frozen=True, slots=True)
class FlyingStep:
    """A step that the runner was given and that was not looked at yet."""

    plan: StepPlan
    pending: PendingStep
    num_prefill_tokens: int
    launched_s: float


class EngineCore:
    """Scheduler, KV cache and runner of one engine. Single-threaded.

    Usage:
        core.add(sequence)
        while core.has_work:
            outputs = core.step()

    Where the runner can overlap, step N + 1 is planned and launched before the result of step N is
    waited for, so the device never waits for the CPU.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        *,
        prefix_model: str,
        eos_token_ids: frozenset[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._cache = KvCache(
            runner.num_blocks,
            config.cache.block_size,
            prefix_model=prefix_model,
            enable_prefix_caching=config.cache.enable_prefix_caching,
        )
        self._scheduler = Scheduler(
            config.scheduler,
            self._cache,
            max_num_batched_tokens=runner.max_num_batched_tokens,
            max_num_prompt_tokens=config.scheduler.prompt_budget(runner.device),
            max_model_len=runner.max_model_len,
            eos_token_ids=eos_token_ids,
        )
        self._meter = StepMeter()
        self._flying: deque[FlyingStep] = deque()
        self._collected_s = 0.0
        self._num_failures_in_a_row = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute or say something."""
        return self._scheduler.has_work or bool(self._flying) or self._cache.has_events

    @property
    def max_model_len(self) -> int:
        """Longest prompt and completion together: the runner's, and what the cache can hold."""
        return self._scheduler.max_model_len

    @property
    def stats(self) -> CoreStats:
        return replace(self._scheduler.measure())

    def describe(self) -> CoreReady:
        """Return what this core became; device, dtype and load times if the runner tells."""
        return CoreReady(
            num_blocks=self._cache.pool.num_blocks,
            block_size=self._cache.block_size,
            max_model_len=self.max_model_len,
            max_num_seqs=self._scheduler.max_num_seqs,
            max_num_batched_tokens=self._runner.max_num_batched_tokens,
            dtype=str(getattr(self._runner, "dtype", "")).removeprefix("torch."),
            device=self._runner.device,
            load_report=dict(getattr(self._runner, "load_report", {})),
            roofline=getattr(self._runner, "roofline", None),
        )

    def add(self, new: NewSequence) -> None:
        """Queue a sequence.

        Raises:
            PromptTooLongError: it leaves no room for even one generated token.
            InvalidRequestError: it can never be computed for another reason.
            QueueFullError: `max_num_queued_reqs` are waiting already.
        """
        self._scheduler.add(new)

    def add_while_needed(self, sequences: deque[NewSequence]) -> None:
        """Queue sequences from the left until the next steps, or the queue, can take no more.

        Hashing a prompt takes time, in which the GPU would wait for the first step of a large
        batch; called before each step, this leaves most of it to when others are computed.

        Raises:
            InvalidRequestError: as `add`; the sequence is still there.
        """
        scheduler, num_steps = self._scheduler, self._runner.max_num_in_flight
        while sequences and not (scheduler.fills_steps(num_steps) or scheduler.has_full_queue):
            scheduler.add(sequences[0])
            sequences.popleft()

    def in_order(self, sequences: Iterable[NewSequence]) -> list[NewSequence]:
        """Return sequences in the order in which the core starts them."""
        return self._scheduler.in_order(sequences)

    def abort(self, seq_ids: Collection[int]) -> None:
        """Forget sequences and free their blocks; unknown ids are ignored. No output follows."""
        self._scheduler.abort(seq_ids)

    def step(self) -> StepOutputs:
        """Launch what can be computed and return what the oldest step computed.

        Call while `has_work`. A runner that raises fails the sequences of that step with
        FinishReason.ERROR; one that raises step after step has its exception passed on, since
        nothing will get better.
        """
        outputs = self._launch_ahead()
        if not outputs and self._flying:
            outputs = self._collect()
        events = self._cache.take_events()
        return StepOutputs(outputs=outputs, stats=self.stats, kv_events=events)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no live sequence uses; `step` reports it."""
        self._cache.pool.forget_unused()

    def profiler(self) -> StepProfiler:
        """Return what starts and stops the recording of steps.

        Raises:
            ConfigError: the configuration names no folder for traces.
        """
        profiler: StepProfiler | None = getattr(self._runner, "profiler", None)
        if profiler is None:
            raise ConfigError(
                "no folder for traces is configured: set profile, as in LLM(model, "
                'profile="traces", profile_steps=0), or --profile'
            )
        return profiler

    def check_alive(self) -> None:
        """Raise what the runner raises if it has found out that it can compute nothing more."""
        check_alive = getattr(self._runner, "check_alive", None)
        if check_alive is not None:
            check_alive()

    def check(self) -> None:
        """Raise AssertionError if an invariant of scheduler or cache does not hold."""
        self._scheduler.check()

    def _launch_ahead(self) -> list[SequenceOutput]:
        """Launch until enough steps are in flight; return what became of a plan that failed."""
        while len(self._flying) < self._runner.max_num_in_flight and self._scheduler.has_work:
            if self._flying and self._scheduler.would_preempt:
                break  # a victim is chosen from what is known, not from what is being computed
            launched_s = self._clock()
            plan = self._scheduler.schedule(launched_s)
            if not plan.num_tokens:
                assert self._flying, "a step of waiting sequences computes nothing"
                self._scheduler.take_back(plan)
                break
            try:
                pending = self._runner.launch(plan)
            except Exception as error:  # whatever it is, the other sequences need not fail for it
                return self._fail(plan, error)
            num_prefill_tokens = plan.total_num_tokens - self._scheduler.num_last_decodes
            self._flying.append(FlyingStep(plan, pending, num_prefill_tokens, launched_s))
        return []

    def _collect(self) -> list[SequenceOutput]:
        """Wait for the oldest step in flight and take in its result."""
        step = self._flying.popleft()
        try:
            result = step.pending.wait()
        except Exception as error:  # as above
            outputs = self._fail(step.plan, error)
        else:
            self._num_failures_in_a_row = 0
            outputs = self._scheduler.update(step.plan, result)
        self._measure(step)
        return outputs

    def _measure(self, step: FlyingStep) -> None:
        now_s = self._clock()
        self._meter.record(
            self._scheduler.stats,
            step_s=now_s - max(step.launched_s, self._collected_s),
            num_tokens=step.plan.total_num_tokens,
            num_prefill_tokens=step.num_prefill_tokens,
        )
        self._collected_s = now_s
        num_compiles = getattr(self._runner, "num_compiles_after_ready", 0)
        self._scheduler.stats.num_compiles_after_ready = num_compiles

    def _fail(self, plan: StepPlan, error: Exception) -> list[SequenceOutput]:
        self._num_failures_in_a_row += 1
        logger.error(
            "step failed num_sequences=%d num_tokens=%d failures_in_a_row=%d",
            len(plan.num_tokens),
            plan.total_num_tokens,
            self._num_failures_in_a_row,
            exc_info=error,
        )
        if self._num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise error
        return self._scheduler.fail(plan, f"the step failed: {type(error).__name__}: {error}")


def refusal(seq_id: int, error: RequestError) -> SequenceOutput:
    """Return the output that tells a frontend elsewhere what `EngineCore.add` raised."""
    return SequenceOutput(
        seq_id=seq_id,
        finish_reason=FinishReason.ERROR,
        error=str(error),
        error_kind=type(error).__name__,
    )
