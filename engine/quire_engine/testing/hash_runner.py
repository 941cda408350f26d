"""A runner without a model that proves the scheduler's plans right.

Its "keys and values" of a position are a hash of all tokens up to it, kept slot by slot as a paged
cache would. Before it computes a position it reads every earlier one through the block table and
compares: a wrong block table, a wrongly shared block or a block given away too early cannot pass.
The next token is a hash of all tokens, so outputs depend on nothing but the sequence itself.
"""

from collections import deque
from dataclasses import dataclass, field

from quire_engine.config import EngineConfig
from quire_engine.core.messages import TokenLogprobs
from quire_engine.runner.plan import AdmittedSequence, PendingStep, StepPlan, StepResult

_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def context_hash(before: int, token: int) -> int:
    """Extend the hash of a context by one token."""
    mixed = ((before ^ (token + 1)) * _MULTIPLIER) & _MASK
    return mixed ^ (mixed >> 29)


def next_token(token_ids: list[int], vocab_size: int) -> int:
    """Return what HashRunner generates after these tokens."""
    value = 0
    for token in token_ids:
        value = context_hash(value, token)
    return value % vocab_size


@dataclass(slots=True)
class _Row:
    token_ids: list[int]
    num_prompt_tokens: int
    block_ids: list[int]
    num_computed_tokens: int
    wants_logprobs: bool
    wants_prompt_logprobs: bool
    contexts: list[int] = field(default_factory=list)
    """By position: the hash of all tokens up to it."""


class _LazyStep:
    def __init__(self, runner: "HashRunner", plan: StepPlan) -> None:
        self._runner, self.plan = runner, plan

    def wait(self) -> StepResult:
        return self._runner.finish(self)


class HashRunner:
    """A ModelRunner that verifies every plan.

    A step runs when it is waited for, so that with `max_num_in_flight` of 2 the next one is planned
    before, as on a device.

    Raises:
        AssertionError: a plan breaks the contract of `runner/plan.py`.
    """

    device = "cpu"
    dtype = "none"

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        vocab_size: int = 1000,
        max_num_batched_tokens: int = 256,
        max_num_in_flight: int = 1,
    ) -> None:
        self.num_blocks = num_blocks
        self.max_model_len = max_model_len
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_in_flight = max_num_in_flight
        self._launched: deque[_LazyStep] = deque()
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._slots: list[int | None] = [None] * (num_blocks * block_size)
        self._rows: dict[int, _Row] = {}

    @property
    def live_seq_ids(self) -> set[int]:
        """Sequences that have a row."""
        return set(self._rows)

    def launch(self, plan: StepPlan) -> PendingStep:
        self._launched.append(_LazyStep(self, plan))
        assert len(self._launched) <= self.max_num_in_flight, "too many steps in flight"
        return self._launched[-1]

    def finish(self, step: "_LazyStep") -> StepResult:
        """Run a launched step, which must be the oldest."""
        assert self._launched.popleft() is step, "steps are not waited for in their order"
        return self.execute(step.plan)

    def execute(self, plan: StepPlan) -> StepResult:
        for seq_id in plan.dropped:
            self._rows.pop(seq_id, None)
        for new in plan.admitted:
            self._admit(new)
        for seq_id, block_ids in plan.new_block_ids.items():
            self._rows[seq_id].block_ids += block_ids
        self._check_tables()
        result = StepResult()
        for seq_id, num_tokens in plan.num_tokens.items():
            self._compute(seq_id, num_tokens, result)
        return result

    def _admit(self, new: AdmittedSequence) -> None:
        assert new.seq_id not in self._rows, f"sequence {new.seq_id} is admitted twice"
        self._rows[new.seq_id] = _Row(
            token_ids=new.token_ids,
            num_prompt_tokens=new.num_prompt_tokens,
            block_ids=new.block_ids,
            num_computed_tokens=new.num_computed_tokens,
            wants_logprobs=new.params.logprobs is not None,
            wants_prompt_logprobs=new.params.prompt_logprobs is not None,
        )

    def _check_tables(self) -> None:
        for seq_id, row in self._rows.items():
            assert len(set(row.block_ids)) == len(row.block_ids), f"{seq_id} has a block twice"
            for block in row.block_ids:
                assert 0 <= block < self.num_blocks, f"{seq_id} has block {block}"

    def _compute(self, seq_id: int, num_tokens: int, result: StepResult) -> None:
        row = self._rows[seq_id]
        first, end = row.num_computed_tokens, row.num_computed_tokens + num_tokens
        assert num_tokens >= 1, f"{seq_id} computes nothing"
        assert end <= len(row.token_ids), f"{seq_id} computes tokens it does not have"
        self._extend_contexts(row)
        for position in range(first):
            held = self._slots[self._slot(row, position)]
            assert held == row.contexts[position], f"{seq_id} reads foreign KV at {position}"
        for position in range(first, end):
            self._slots[self._slot(row, position)] = row.contexts[position]
        row.num_computed_tokens = end
        if row.wants_prompt_logprobs:
            positions = range(first, min(end, row.num_prompt_tokens - 1))
            result.prompt_logprobs[seq_id] = [
                _logprobs_of(row.token_ids[position + 1]) for position in positions
            ]
        if end == len(row.token_ids):
            token = row.contexts[-1] % self._vocab_size
            row.token_ids.append(token)
            result.token_ids[seq_id] = token
            if row.wants_logprobs:
                result.logprobs[seq_id] = _logprobs_of(token)

    def _extend_contexts(self, row: _Row) -> None:
        context = row.contexts[-1] if row.contexts else 0
        for token in row.token_ids[len(row.contexts) :]:
            context = context_hash(context, token)
            row.contexts.append(context)

    def _slot(self, row: _Row, position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return row.block_ids[block] * self._block_size + offset


def _logprobs_of(token: int) -> TokenLogprobs:
    return TokenLogprobs(token_ids=[token], logprobs=[-float(token)], ranks=[1])


def build_runner(config: EngineConfig) -> HashRunner:
    """Return a runner of the configured size; a runner factory for `CoreClient.start`."""
    return HashRunner(
        num_blocks=config.cache.num_gpu_blocks_override or 256,
        block_size=config.cache.block_size,
        max_model_len=config.model.max_model_len or 2048,
        max_num_batched_tokens=config.scheduler.token_budget("cpu"),
    )
