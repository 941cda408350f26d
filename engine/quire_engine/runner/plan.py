"""The contract between the scheduler and whatever executes a step.

The runner keeps a row of state per live sequence (tokens, block table, sampling state), so a plan
carries only differences: a sequence's tokens travel once, then only new block ids. A plan is plain
data: it can be sent to the processes of a tensor-parallel group as it is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from quire_engine.core.messages import TokenLogprobs
from quire_engine.sampling_params import SamplingParams


@dataclass(slots=True, kw_only=True)
class AdmittedSequence:
    """A sequence that the runner does not know: new, or back after preemption."""

    seq_id: int
    token_ids: list[int]
    """Prompt and, after preemption, the tokens generated so far."""
    num_prompt_tokens: int
    block_ids: list[int]
    num_computed_tokens: int
    """Tokens whose keys and values are in the cache already."""
    params: SamplingParams
    bad_words_token_ids: list[list[int]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """One step. Applied in the order: drop, admit, extend block tables, compute."""

    dropped: list[int] = field(default_factory=list)
    """Sequences that ended or were preempted since the last plan; their rows are free."""
    admitted: list[AdmittedSequence] = field(default_factory=list)
    new_block_ids: dict[int, list[int]] = field(default_factory=dict)
    """Blocks appended to the tables of sequences that the runner knows."""
    num_tokens: dict[int, int] = field(default_factory=dict)
    """Tokens to compute for each sequence of this step, from its first uncomputed one on.

    Where this reaches the sequence's last token, the runner samples the next one and appends it.
    """

    @property
    def total_num_tokens(self) -> int:
        return sum(self.num_tokens.values())


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step computed, by sequence id."""

    token_ids: dict[int, int] = field(default_factory=dict)
    """The sampled token of each sequence whose known tokens are all computed."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """For sequences that asked, beside their sampled token."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """For sequences that asked: entries for the prompt positions of this step's chunk, in order.

    The entry computed at position p describes prompt token p + 1.
    """


class PendingStep(Protocol):
    """A step that was launched."""

    def wait(self) -> StepResult:
        """Return what it computed, as soon as it has; steps are waited for in their order.

        What this raises fails the sequences of the step's plan.
        """
        ...


class ModelRunner(Protocol):
    """Executes plans on one device, or on a group of them."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, fixed once the runner is ready."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and completion, after the cache was sized."""
        ...

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens of a step."""
        ...

    @property
    def device(self) -> str:
        """Kind of device: cpu or cuda."""
        ...

    @property
    def max_num_in_flight(self) -> int:
        """Steps that may be launched and not waited for; more than one overlaps CPU and device."""
        ...

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin one step. A plan with no tokens only applies its drops.

        A plan may continue sequences whose last token is not known yet, because the step that
        samples it is in flight: the runner has it when the step runs.

        What this raises fails the sequences of the plan. The next plan drops them, and repeats what
        this one dropped; so a runner ignores dropped ids that it does not know.
        """
        ...


class StepProfiler(Protocol):
    """What a runner whose steps can be recorded has as its `profiler`."""

    def start_profile(self) -> None:
        """Record every step from the next one on."""
        ...

    def stop_profile(self) -> None:
        """Write what was recorded."""
        ...


class FinishedStep:
    """A `PendingStep` of a runner that computes while it launches."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


class ImmediateRunner(ABC):
    """Base of runners whose steps are over when `launch` returns."""

    max_num_in_flight = 1

    def launch(self, plan: StepPlan) -> PendingStep:
        """Run one step; see `ModelRunner.launch`."""
        return FinishedStep(self.execute(plan))

    @abstractmethod
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step and return what it computed."""
