"""Decides what each step computes. Pure: no torch, no clock; what happens depends on calls alone.

A sequence's `num_computed_tokens` chases its `num_tokens`; a step is how many tokens each sequence
advances. That one idea carries chunked prefill, prefix hits, decoding and preemption.

The rules, and why nobody starves or hangs:

*   Order is by key: (priority, arrival, id). The head of the queue is never bypassed because it
    does not fit. Only a sequence held for a prefix that is being computed lets others pass.
*   No more sequences run than a step has tokens, so each running one advances in every step:
    decodes by one, prefills by their share (`chunking.py`).
*   A sequence is admitted when all its tokens fit and a watermark of blocks stays free; when
    nothing runs, the watermark does not count. One that could not fit in an empty cache is refused
    when it arrives, so the head is admitted at the latest when all that runs has ended.
*   When a decode needs a block and none is free, the running sequence with the largest key gives
    up its blocks and waits again. The one with the smallest key is never preempted and always
    advances, so it ends; then the next.

A step may be planned while earlier ones are in flight: what they will compute counts as computed,
and a token that they will sample as known. A sequence that turns out to have ended has then one
step too many in flight, whose result is not looked at. Steps run in order, so a block that was
given back is not written by an old step after a new one. Only preemption has to wait for results
(`would_preempt`): a victim must be told from its tokens.
"""

from bisect import insort
from collections.abc import Iterable

from quire_engine.config import SchedulerConfig
from quire_engine.core.chunking import PrefillDemand
from quire_engine.core.kv_cache import KvCache
from quire_engine.core.messages import CoreStats, NewSequence, SequenceOutput
from quire_engine.core.prompt_length import check_prompt_length
from quire_engine.core.queue import SequenceQueue
from quire_engine.core.sequence import Key, Sequence, State
from quire_engine.core.sequence_output import describe_failure, describe_token
from quire_engine.errors import InvalidRequestError, QueueFullError
from quire_engine.runner.plan import StepPlan, StepResult


class Scheduler:
    """Queue, running sequences, and the plan of the next step."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KvCache,
        *,
        max_num_batched_tokens: int,
        max_num_prompt_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._cache = cache
        self._is_fcfs = config.scheduling_policy == "fcfs"
        self._max_num_queued = config.max_num_queued_reqs
        self._max_num_tokens = max_num_batched_tokens
        self.max_num_seqs = min(config.max_num_seqs, max_num_batched_tokens)
        # All that run may be prefills, and each must advance.
        most = max(max_num_prompt_tokens, self.max_num_seqs)
        self._max_num_prompt_tokens = min(most, max_num_batched_tokens)
        self._long_above = config.long_prefill_token_threshold or self._max_num_prompt_tokens
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._num_watermark_blocks = int(config.watermark * cache.pool.num_blocks)
        self.max_model_len = min(max_model_len, cache.num_slots)
        """What the model accepts and the cache can hold."""
        self.stats = CoreStats(num_total_blocks=cache.pool.num_blocks)
        """Totals, updated in place; gauges are set by `measure`."""
        self._sequences: dict[int, Sequence] = {}
        self._running: list[Sequence] = []  # by key
        self._prefills: list[Sequence] = []  # those of the last step
        self._num_decodes = 0
        self._queue = SequenceQueue()
        self._dropped: list[int] = []
        self._blocked: tuple[Sequence, int] | None = None
        """The head that did not fit, and how many blocks were free."""
        self._has_just_preempted = False

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def num_last_decodes(self) -> int:
        """Decodes of the step that was planned last."""
        return self._num_decodes

    @property
    def has_full_queue(self) -> bool:
        """Whether as many wait as may; those that the next step will take up do not count."""
        if self._max_num_queued is None:
            return False
        num_free = 0 if self._blocked else self.max_num_seqs - len(self._running)
        return len(self._queue) - num_free >= self._max_num_queued

    def fills_steps(self, num_steps: int) -> bool:
        """Tell whether so many steps can compute no more prompt tokens than wait already."""
        return self._queue.num_tokens >= num_steps * self._max_num_prompt_tokens

    def in_order(self, sequences: Iterable[NewSequence]) -> list[NewSequence]:
        """Return sequences in the order in which they would be started."""
        return sorted(sequences, key=self._key_of)

    def add(self, new: NewSequence) -> None:
        """Queue a sequence.

        Raises:
            InvalidRequestError: it can never be computed.
            QueueFullError: too many wait already.
        """
        self._check_acceptable(new)
        sequence = Sequence(
            new,
            key=self._key_of(new),
            chain=self._cache.new_chain(new.prompt_token_ids, new.cache_salt),
            max_model_len=self.max_model_len,
            eos_token_ids=self._eos_token_ids,
        )
        num_cached = len(self._cache.find_prefix(sequence)) * self._cache.block_size
        self._sequences[new.seq_id] = sequence
        self._queue.push(sequence, num_expected_tokens=sequence.num_tokens - num_cached)

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Forget sequences and free their blocks; unknown ids are ignored."""
        ended = []
        for seq_id in seq_ids:
            sequence = self._sequences.get(seq_id)
            if sequence is None:
                continue
            if sequence.state is State.RUNNING:
                ended.append(sequence)
            else:
                self._leave_queue(sequence)
                del self._sequences[seq_id]
        self._end(ended)

    @property
    def would_preempt(self) -> bool:
        """Whether the next plan takes blocks away from a running sequence."""
        num_free, running = self._cache.pool.num_free, self._running
        return num_free < len(running) and num_free < sum(map(self._cache.needs_block, running))

    def schedule(self, now_s: float) -> StepPlan:
        """Plan the next step; `now_s` is what outputs will report as `scheduled_s`."""
        plan = StepPlan(dropped=self._dropped)
        self._dropped = []
        num_preemptions = self.stats.num_preemptions
        self._plan_decodes(plan)
        self._num_decodes = len(plan.num_tokens)
        num_left = self._max_num_tokens - self._num_decodes
        demand = PrefillDemand(
            min(num_left, self._max_num_prompt_tokens),
            long_above=self._long_above,
            max_chunk=self._long_above,
        )
        for sequence in self._prefills:
            demand.add(sequence.num_unscheduled_tokens)
        self._has_just_preempted = self.stats.num_preemptions > num_preemptions
        if not self._has_just_preempted:
            # Otherwise what a victim gave up would go to a newcomer, and a victim be next.
            self._admit(plan, demand, now_s)
        self._plan_prefills(plan, demand)
        return plan

    def take_back(self, plan: StepPlan) -> None:
        """Keep for the next plan what one that computes nothing would have dropped."""
        self._dropped = plan.dropped

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Take in what a step computed; return what it means for each sequence."""
        outputs, ended = [], []
        for seq_id, num_tokens in plan.num_tokens.items():
            sequence = self._sequences.get(seq_id)
            if sequence is None:  # ended or aborted while the step was in flight
                self.stats.num_overrun_tokens += num_tokens
                continue
            self._advance(sequence, num_tokens)
            if sequence.num_computed_tokens == len(sequence.token_ids):
                output = self._append(sequence, result)
                outputs.append(output)
                if output.finish_reason is not None:
                    ended.append(sequence)
            elif seq_id in result.prompt_logprobs:
                sequence.prompt_logprobs += result.prompt_logprobs[seq_id]
        self._end(ended)
        return outputs

    def fail(self, plan: StepPlan, message: str) -> list[SequenceOutput]:
        """End the sequences of a step that could not be computed."""
        found = (self._sequences.get(seq_id) for seq_id in plan.num_tokens)
        sequences = [sequence for sequence in found if sequence is not None]
        self._dropped += plan.dropped  # the runner may not have come as far as that
        self._end(sequences)
        return [describe_failure(sequence, message) for sequence in sequences]

    def measure(self) -> CoreStats:
        """Bring the gauges up to date and return the statistics, the scheduler's own copy."""
        stats = self.stats
        stats.num_running = len(self._running)
        stats.num_waiting = len(self._queue)
        stats.num_held = self._queue.num_held
        stats.waits_for = self._waits_for()
        stats.num_used_blocks = self._cache.pool.num_used
        stats.num_waiting_uncached_tokens = self._queue.num_tokens + sum(
            sequence.num_unscheduled_tokens
            for sequence in self._prefills
            if sequence.state is State.RUNNING and sequence.num_unscheduled_tokens > 1
        )
        return stats

    def _waits_for(self) -> str:
        """Return what the head of the queue lacks; empty when nobody waits."""
        if not self._queue.has_first:
            return ""
        if self._blocked is not None or self._has_just_preempted:
            return "kv_space"
        return "seats" if len(self._running) >= self.max_num_seqs else "budget"

    def check(self) -> None:
        """Raise AssertionError unless the invariants of scheduler and cache hold."""
        self._cache.check(self._running)
        keys = [sequence.key for sequence in self._running]
        assert keys == sorted(keys), "running sequences are out of order"
        found = {i for i, one in self._sequences.items() if one.state is State.RUNNING}
        assert found == {sequence.seq_id for sequence in self._running}, "a sequence got lost"
        self._queue.check(self._sequences)

    # Arrival

    def _check_acceptable(self, new: NewSequence) -> None:
        if new.seq_id in self._sequences:
            raise InvalidRequestError(f"sequence id {new.seq_id} is in use")
        check_prompt_length(len(new.prompt_token_ids), self._max_model_len, self._cache)
        if self._max_num_queued is not None and self.has_full_queue:
            raise QueueFullError(len(self._queue), self._max_num_queued)

    def _key_of(self, new: NewSequence) -> Key:
        return (0 if self._is_fcfs else new.priority, new.arrival_s, new.seq_id)

    def _leave_queue(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
        if self._blocked is not None and self._blocked[0] is sequence:
            self._blocked = None

    # Planning

    def _plan_decodes(self, plan: StepPlan) -> None:
        """Give each decode its token, and a block where it needs one; collect the prefills."""
        running, needs_block = self._running, self._cache.needs_block
        self._prefills = []
        index = 0
        while index < len(running):  # preemption shortens it at its end
            sequence = running[index]
            num_left = sequence.num_unscheduled_tokens
            if num_left > 1:
                self._prefills.append(sequence)
            elif sequence.num_pending_samples and sequence.will_end:
                pass
            elif needs_block(sequence) and not self._grow(sequence, plan):
                break
            else:
                plan.num_tokens[sequence.seq_id] = 1
                sequence.schedule(1)
            index += 1

    def _grow(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Append a block, at the cost of others if need be; False if the cost was itself."""
        while not self._cache.pool.num_free:
            victim = self._running.pop()
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        plan.new_block_ids[sequence.seq_id] = self._cache.grow(sequence)
        return True

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        sequence.num_lost_tokens = sequence.num_computed_tokens
        self._cache.free(sequence)
        self._queue.let_go(sequence)
        sequence.num_preemptions += 1
        sequence.prompt_logprobs = []
        self.stats.num_preemptions += 1
        plan.dropped.append(sequence.seq_id)
        self._queue.push(sequence, num_expected_tokens=sequence.num_tokens)

    def _admit(self, plan: StepPlan, demand: PrefillDemand, now_s: float) -> None:
        """Start waiting sequences, in order, while they fit."""
        num_seats = self.max_num_seqs
        while self._queue.has_first and len(self._running) < num_seats and demand.has_room:
            sequence = self._queue.first()
            if self._is_still_blocked(sequence):
                return
            prefix = self._cache.find_prefix(sequence)
            if self._hold_for_sibling(sequence, len(prefix)):
                continue
            num_spare_blocks = self._num_watermark_blocks if self._running else 0
            if not self._cache.can_admit(sequence, prefix, num_spare_blocks=num_spare_blocks):
                self._blocked = (sequence, self._cache.pool.num_free)
                return
            self._start(sequence, prefix, plan, now_s)
            demand.add(sequence.num_unscheduled_tokens)

    def _is_still_blocked(self, sequence: Sequence) -> bool:
        """Whether trying again is in vain, since no block was freed since the last time."""
        if self._blocked is None or self._blocked[0] is not sequence or not self._running:
            return False
        return self._cache.pool.num_free <= self._blocked[1]

    def _hold_for_sibling(self, sequence: Sequence, num_cached_blocks: int) -> bool:
        """Hold a sequence that shares more with a running prefill than is computed yet."""
        if sequence.was_held or not sequence.reads_cache:
            return False
        num_usable = (sequence.num_tokens - 1) // self._cache.block_size
        for leader in self._prefills:
            if leader.key > sequence.key:
                continue  # waiting for a lesser one would invert priorities
            num_blocks = min(num_usable, sequence.chain.num_shared(leader.chain))
            if num_blocks > max(num_cached_blocks, leader.num_stored_blocks):
                self._queue.hold_first(leader, num_blocks)
                return True
        return False

    def _start(self, sequence: Sequence, prefix: list[int], plan: StepPlan, now_s: float) -> None:
        self._queue.pop()
        self._blocked = None
        self._cache.admit(sequence, prefix)
        sequence.state = State.RUNNING
        insort(self._running, sequence, key=_key)
        self._prefills.append(sequence)
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now_s
            self._count_prefix_hit(sequence)
        else:
            num_lost = sequence.num_lost_tokens - sequence.num_computed_tokens
            self.stats.num_recomputed_tokens += max(0, num_lost)
        plan.admitted.append(sequence.admission())

    def _count_prefix_hit(self, sequence: Sequence) -> None:
        sequence.num_cached_tokens = sequence.num_computed_tokens
        if sequence.reads_cache:
            self.stats.num_prefix_queried_tokens += sequence.num_prompt_tokens
            self.stats.num_prefix_hit_tokens += sequence.num_computed_tokens

    def _plan_prefills(self, plan: StepPlan, demand: PrefillDemand) -> None:
        """Divide what decodes left of the budget."""
        self._prefills.sort(key=_key)
        grants = demand.divide([sequence.num_unscheduled_tokens for sequence in self._prefills])
        for sequence, num_tokens in zip(self._prefills, grants, strict=True):
            plan.num_tokens[sequence.seq_id] = num_tokens
            sequence.schedule(num_tokens)

    # Results

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        num_prompt_left = sequence.num_prompt_tokens - sequence.num_computed_tokens
        if num_prompt_left > 0:
            self.stats.num_prompt_tokens += min(num_tokens, num_prompt_left)
        sequence.num_computed_tokens += num_tokens
        self._cache.store_computed(sequence)
        self._queue.let_go(sequence, sequence.num_stored_blocks)

    def _append(self, sequence: Sequence, result: StepResult) -> SequenceOutput:
        sequence.token_ids.append(result.token_ids[sequence.seq_id])
        sequence.num_pending_samples -= 1
        self.stats.num_generated_tokens += 1
        return describe_token(sequence, result)

    def _end(self, sequences: list[Sequence]) -> None:
        """Forget running sequences; the runner hears of it with the next plan."""
        if not sequences:
            return
        for sequence in sequences:
            sequence.state = State.ENDED
            self._cache.free(sequence)
            self._queue.let_go(sequence)
            self._dropped.append(sequence.seq_id)
            del self._sequences[sequence.seq_id]
        self._running = [entry for entry in self._running if entry.state is State.RUNNING]


def _key(sequence: Sequence) -> Key:
    return sequence.key
