"""What a frontend sees: ends, refusals, cache hits, failures, figures."""

import logging
from collections import deque
from typing import Any

import pytest

from core_support import (
    BLOCK_SIZE,
    Listener,
    expected_tokens,
    new_core,
    new_sequence,
    run,
    tokens,
)
from quire_engine.config import SchedulerConfig
from quire_engine.core.engine_core import refusal
from quire_engine.core.messages import FinishReason
from quire_engine.errors import InvalidRequestError, PromptTooLongError, QueueFullError
from quire_engine.rpc.prefix import block_hashes, prefix_seed
from quire_engine.runner.plan import StepPlan, StepResult
from quire_engine.testing.hash_runner import HashRunner

PROMPT = tokens(20)
GENERATED = expected_tokens(new_sequence(0, PROMPT, max_tokens=10))


def test_end_of_sequence_ends_a_sequence_and_is_included() -> None:
    heard = run(new_core(eos=[GENERATED[2]]), new_sequence(0, PROMPT, max_tokens=10))[0]
    assert heard.token_ids == GENERATED[:3]
    assert heard.finish_reason is FinishReason.STOP
    assert heard.outputs[-1].stop_token_id is None


def test_end_of_sequence_can_be_ignored() -> None:
    core = new_core(eos=[GENERATED[2]])
    heard = run(core, new_sequence(0, PROMPT, max_tokens=10, ignore_eos=True))[0]
    assert heard.token_ids == GENERATED
    assert heard.finish_reason is FinishReason.LENGTH


def test_a_stop_token_ends_a_sequence_and_is_named() -> None:
    heard = run(new_core(), new_sequence(0, PROMPT, stop_token_ids=[GENERATED[1]]))[0]
    assert heard.token_ids == GENERATED[:2]
    assert heard.outputs[-1].stop_token_id == GENERATED[1]


def test_nothing_stops_a_sequence_before_min_tokens() -> None:
    new = new_sequence(0, PROMPT, max_tokens=10, min_tokens=5, stop_token_ids=[GENERATED[1]])
    assert len(run(new_core(eos=[GENERATED[2]]), new)[0].token_ids) >= 5


def test_a_sequence_ends_where_the_model_does() -> None:
    heard = run(new_core(max_model_len=25), new_sequence(0, PROMPT, max_tokens=None))[0]
    assert len(heard.token_ids) == 5
    assert heard.finish_reason is FinishReason.LENGTH


def test_a_sequence_ends_where_the_cache_does() -> None:
    core = new_core(num_blocks=2)
    assert core.max_model_len == 2 * BLOCK_SIZE
    assert len(run(core, new_sequence(0, PROMPT, max_tokens=None))[0].token_ids) == 12


def test_a_prompt_too_long_for_the_model_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLongError, match=r"25 tokens.*25"):
        new_core(max_model_len=25).add(new_sequence(0, tokens(25)))


def test_a_prompt_too_long_for_the_cache_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidRequestError, match=r"40 tokens and needs 3 cache blocks.*has 2"):
        new_core(num_blocks=2).add(new_sequence(0, tokens(40)))


def test_an_empty_prompt_and_a_used_id_are_refused() -> None:
    core = new_core()
    with pytest.raises(InvalidRequestError, match="no tokens"):
        core.add(new_sequence(0, []))
    core.add(new_sequence(0, PROMPT))
    with pytest.raises(InvalidRequestError, match="sequence id 0"):
        core.add(new_sequence(0, PROMPT))


def test_a_full_queue_refuses_but_counts_only_who_must_wait() -> None:
    core = new_core(max_num_seqs=2, max_num_queued_reqs=1)
    for seq_id in range(3):
        core.add(new_sequence(seq_id, PROMPT))
    with pytest.raises(QueueFullError, match="at most 1"):
        core.add(new_sequence(3, PROMPT))
    assert set(Listener(core).run()) == {0, 1, 2}


def test_a_refusal_names_its_kind() -> None:
    output = refusal(5, QueueFullError(3, 2))
    assert (output.seq_id, output.finish_reason) == (5, FinishReason.ERROR)
    assert output.error_kind == "QueueFullError"


def test_a_prompt_seen_before_leaves_its_last_token_to_compute() -> None:
    core = new_core()
    prompt = tokens(4 * BLOCK_SIZE)
    run(core, new_sequence(0, prompt, max_tokens=1))
    heard = run(core, new_sequence(1, prompt))[1]
    assert heard.outputs[0].num_cached_tokens == 3 * BLOCK_SIZE
    stats = core.stats
    assert stats.num_prefix_hit_tokens == 3 * BLOCK_SIZE
    assert stats.num_prefix_queried_tokens == 8 * BLOCK_SIZE


def test_the_next_turn_of_a_conversation_reuses_what_was_generated() -> None:
    core = new_core()
    first = run(core, new_sequence(0, PROMPT, max_tokens=60))[0]
    heard = run(core, new_sequence(1, PROMPT + first.token_ids + [1, 2, 3]))[1]
    assert heard.outputs[0].num_cached_tokens == (20 + 59) // BLOCK_SIZE * BLOCK_SIZE


def test_tenants_share_nothing() -> None:
    core = new_core()
    prompt = tokens(100)
    run(core, new_sequence(0, prompt, cache_salt="one"))
    heard = run(
        core,
        new_sequence(1, prompt, cache_salt="two"),
        new_sequence(2, prompt),
        new_sequence(3, prompt, cache_salt="one"),
    )
    cached = [heard[i].outputs[0].num_cached_tokens for i in (1, 2, 3)]
    assert cached == [0, 0, 96]


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 0}, {"skip_reading_prefix_cache": True}])
def test_the_cache_is_not_read_for_those_who_cannot_use_it(asked: dict[str, Any]) -> None:
    core = new_core()
    run(core, new_sequence(0, tokens(100)))
    heard = run(core, new_sequence(1, tokens(100), **asked))
    assert heard[1].outputs[0].num_cached_tokens == 0


def test_events_carry_the_hashes_of_the_contract() -> None:
    core = new_core()
    core.add(new_sequence(0, tokens(40), cache_salt="s", max_tokens=1))
    events = core.step().kv_events
    assert events is not None
    expected = block_hashes(tokens(40), BLOCK_SIZE, prefix_seed("test", cache_salt="s"))
    assert events.stored == [(0, expected)]


def test_a_reset_forgets_what_nobody_uses_and_says_so() -> None:
    core = new_core()
    listener = Listener(core)
    core.add(new_sequence(0, tokens(100), max_tokens=1))
    listener.run()
    core.add(new_sequence(1, tokens(50, 1), max_tokens=9))
    listener.step()
    core.reset_prefix_cache()
    assert core.has_work
    listener.step()
    assert len(listener.hashes) == 50 // BLOCK_SIZE
    listener.run()
    core.reset_prefix_cache()
    assert core.has_work
    listener.step()
    assert not listener.hashes
    assert not core.has_work


class FailingRunner(HashRunner):
    """Fails in the given calls."""

    def __init__(self, *fails_at: int) -> None:
        super().__init__(num_blocks=64, block_size=BLOCK_SIZE, max_model_len=500, vocab_size=50)
        self.num_calls = 0
        self.fails_at = set(fails_at)

    def execute(self, plan: StepPlan) -> StepResult:
        self.num_calls += 1
        if self.num_calls in self.fails_at:
            raise RuntimeError("device went away")
        return super().execute(plan)


def test_a_failed_step_ends_its_sequences_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    core = new_core(runner=FailingRunner(1, 4), max_num_seqs=2)
    sequences = [new_sequence(i, tokens(20, i), max_tokens=9) for i in range(6)]
    heard = run(core, *sequences)
    reasons = [heard[i].finish_reason for i in range(6)]
    assert reasons == [FinishReason.ERROR] * 4 + [FinishReason.LENGTH] * 2
    assert "device went away" in (heard[0].outputs[-1].error or "")
    assert heard[5].token_ids == expected_tokens(sequences[5])
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 2
    assert records[0].exc_info is not None


def test_a_runner_hears_again_of_drops_that_a_failed_step_may_have_missed() -> None:
    runner = FailingRunner(2)
    core = new_core(runner=runner, max_num_seqs=1)
    run(core, *(new_sequence(i, tokens(20, i), max_tokens=1) for i in range(3)))
    core.add(new_sequence(3, tokens(20, 3)))
    core.step()
    assert runner.live_seq_ids == {3}


def test_a_runner_that_fails_every_step_ends_the_core() -> None:
    core = new_core(runner=FailingRunner(1, 2, 3), max_num_seqs=1)
    for seq_id in range(4):
        core.add(new_sequence(seq_id, tokens(20, seq_id)))
    core.step()
    core.step()
    with pytest.raises(RuntimeError, match="device went away"):
        core.step()


def test_statistics_count_what_was_computed() -> None:
    core = new_core(budget=30)
    run(core, new_sequence(0, tokens(50), max_tokens=5))
    stats = core.stats
    assert stats.num_prompt_tokens == 50
    assert stats.num_generated_tokens == 5
    assert stats.num_steps == 6
    assert stats.prefill_tokens_per_s > 0.0
    assert stats.decode_step_s > 0.0
    assert stats.busy_s >= stats.step_s > 0.0


def test_statistics_handed_out_do_not_change() -> None:
    core = new_core()
    before = core.stats
    run(core, new_sequence(0, PROMPT))
    assert before.num_steps == 0


def test_the_step_budget_is_what_was_configured_or_suits_the_device() -> None:
    auto, fixed = SchedulerConfig(), SchedulerConfig(max_num_batched_tokens=7)

    assert auto.token_budget("cpu") < auto.token_budget("cuda:0")
    assert auto.token_budget("cuda:0") == auto.prompt_budget("cuda:0") + auto.max_num_seqs
    assert fixed.token_budget("cuda:0") == fixed.prompt_budget("cuda:0") == 7


def test_a_prompt_that_fills_a_step_is_not_cut_because_others_decode() -> None:
    scheduler = SchedulerConfig(max_num_seqs=4)
    budget = scheduler.token_budget("cpu")
    listener = Listener(new_core(num_blocks=200, budget=budget, max_num_seqs=4))
    listener.core.add(new_sequence(0, PROMPT, max_tokens=9))
    listener.step()

    for seq_id in (1, 2):
        prompt = tokens(scheduler.prompt_budget("cpu"), first=seq_id)
        listener.core.add(new_sequence(seq_id, prompt, max_tokens=1))

    assert [output.seq_id for output in listener.step()] == [0, 1]
    assert [output.seq_id for output in listener.step()] == [0, 2]


def test_sequences_are_queued_as_steps_can_compute_them() -> None:
    listener = Listener(new_core(budget=64))
    sequences = [new_sequence(seq_id, tokens(20, first=seq_id)) for seq_id in range(10)]
    left = deque(sequences)

    listener.core.add_while_needed(left)
    assert len(left) == 6, "four of twenty tokens fill a step of 64"

    while left or listener.core.has_work:
        listener.core.add_while_needed(left)
        listener.step()
    for new in sequences:
        assert listener.heard[new.seq_id].token_ids == expected_tokens(new)


def test_a_full_queue_delays_what_is_queued_as_needed_and_refuses_nothing() -> None:
    listener = Listener(new_core(max_num_seqs=2, max_num_queued_reqs=1))
    left = deque(new_sequence(seq_id, tokens(4, first=seq_id)) for seq_id in range(6))

    listener.core.add_while_needed(left)
    assert len(left) == 3, "two can start, and one may wait"

    while left or listener.core.has_work:
        listener.core.add_while_needed(left)
        listener.step()
    assert all(heard.finish_reason is FinishReason.LENGTH for heard in listener.heard.values())
    assert len(listener.heard) == 6


def test_sequences_are_told_the_order_in_which_they_start() -> None:
    late, urgent, early = (
        new_sequence(0, PROMPT, arrival_s=9.0),
        new_sequence(1, PROMPT, arrival_s=9.0, priority=-1),
        new_sequence(2, PROMPT, arrival_s=1.0),
    )

    assert new_core().in_order([late, urgent, early]) == [urgent, early, late]
    fcfs = new_core(scheduling_policy="fcfs")
    assert fcfs.in_order([late, urgent, early]) == [early, late, urgent]
