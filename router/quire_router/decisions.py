"""The last decisions: where requests went, why, and what became of them.

A bounded ring, without anything that a client wrote. What a decision compared is immutable and kept
as it was, so recording one costs a few references: it is explained only when somebody looks.
"""

import enum
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from quire_engine.rpc import engine_pb2 as pb
from quire_router.failure import Verdict
from quire_router.policy import Candidate, as_cheap_as_any, predicted_cost

CAPACITY = 50


class Reason(enum.Enum):
    """What decided."""

    ONLY = "only"
    """No other replica could take it."""
    COST = "cost"
    """The smallest predicted cost by far."""
    CACHED = "cached"
    """As cheap as others, with more of the prompt cached."""
    ACTIVE = "active"
    """As good as others, with fewer active requests; all that `least-requests` looks at."""
    TURN = "turn"
    """As good as others, which were chosen more recently."""


# What became of a request, where a replica did not fail it: a `Verdict` says how one did.
RUNNING = "running"
DONE = "done"
CANCELLED = "cancelled"


class Decision:
    """One request sent to one replica."""

    def __init__(
        self,
        number: int,
        candidates: Sequence[Candidate],
        chosen: int,
        *,
        is_by_cost: bool,
        num_prompt_tokens: int,
        num_attempts: int,
        waited_s: float,
        on_change: Callable[["Decision"], None],
    ) -> None:
        """`chosen` is a position in `candidates`; `num_attempts` counts this one."""
        self.number = number
        self.candidates = candidates
        self.chosen = candidates[chosen]
        self.num_prompt_tokens = num_prompt_tokens
        self.num_attempts = num_attempts
        self.waited_s = waited_s
        """How long no replica could take it."""
        self.at = time.time()
        """Unix time, for people; durations are measured apart."""
        self.outcome = RUNNING
        self.revision = 0
        self.num_cached_tokens: int | None = None
        """Prompt tokens that the replica found cached; None before it has said so."""
        self.num_completion_tokens: int | None = None
        self.first_response_s: float | None = None
        self.total_s: float | None = None
        self._is_by_cost = is_by_cost
        self._sent_at = time.monotonic()
        self._on_change = on_change

    @cached_property
    def costs(self) -> list[float]:
        """Predicted seconds, one for each candidate."""
        return [predicted_cost(item, self.num_prompt_tokens) for item in self.candidates]

    @cached_property
    def reason(self) -> Reason:
        if len(self.candidates) == 1:
            return Reason.ONLY
        rest = list(self.candidates)
        if self._is_by_cost:
            rest = as_cheap_as_any(rest, self.costs)
            if len(rest) == 1:
                return Reason.COST
            rest = [item for item in rest if item.cached_tokens == self.chosen.cached_tokens]
            if len(rest) == 1:
                return Reason.CACHED
        rest = [item for item in rest if item.num_active == self.chosen.num_active]
        return Reason.ACTIVE if len(rest) == 1 else Reason.TURN

    def started(self, num_cached_tokens: int) -> None:
        """The replica's first response came."""
        self.first_response_s = time.monotonic() - self._sent_at
        self.num_cached_tokens = num_cached_tokens
        self._on_change(self)

    def done(self, usage: pb.Usage) -> None:
        self.num_completion_tokens = usage.num_completion_tokens
        self._end(DONE)

    def failed(self, verdict: Verdict) -> None:
        self._end(verdict.value)

    def cancelled(self) -> None:
        self._end(CANCELLED)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self.total_s = time.monotonic() - self._sent_at
        self._on_change(self)


class DecisionLog:
    """The last `capacity` decisions; `revision` grows with every change to any of them."""

    def __init__(self, numbers: Iterator[int] | None = None, *, capacity: int = CAPACITY) -> None:
        """`numbers` are those of the decisions to come, each larger than the last."""
        self.revision = 0
        self._numbers = numbers or itertools.count(1)
        self._ring: deque[Decision] = deque(maxlen=capacity)

    def add(
        self,
        candidates: Sequence[Candidate],
        chosen: int,
        *,
        is_by_cost: bool,
        num_prompt_tokens: int,
        num_attempts: int,
        waited_s: float,
    ) -> Decision:
        """Record a decision; what becomes of the request is told to what this returns."""
        decision = Decision(
            next(self._numbers),
            candidates,
            chosen,
            is_by_cost=is_by_cost,
            num_prompt_tokens=num_prompt_tokens,
            num_attempts=num_attempts,
            waited_s=waited_s,
            on_change=self._changed,
        )
        self._changed(decision)
        self._ring.append(decision)
        return decision

    def since(self, revision: int) -> list[Decision]:
        """Return what is new or has changed since a revision, oldest first."""
        return [decision for decision in self._ring if decision.revision > revision]

    def _changed(self, decision: Decision) -> None:
        self.revision += 1
        decision.revision = self.revision
