"""Who runs when: order, fairness, admission, preemption, siblings."""

from core_support import BLOCK_SIZE, Listener, expected_tokens, new_core, new_sequence, run, tokens
from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import NewSequence


def listen(core: EngineCore, *sequences: NewSequence) -> Listener:
    for new in sequences:
        core.add(new)
    return Listener(core)


def first_steps(listener: Listener) -> dict[int, int]:
    """Return the step of each sequence's first token."""
    return {seq_id: heard.first_token_step for seq_id, heard in listener.run().items()}


def test_sequences_are_served_by_priority_then_arrival_then_id() -> None:
    keys = {0: (1, 0.0), 1: (0, 9.0), 2: (0, 5.0), 3: (0, 5.0)}
    sequences = [
        new_sequence(i, tokens(20, i), priority=priority, arrival_s=arrival_s)
        for i, (priority, arrival_s) in keys.items()
    ]
    steps = first_steps(listen(new_core(max_num_seqs=1), *sequences))
    assert sorted(steps, key=lambda i: steps[i]) == [2, 3, 1, 0]


def test_fcfs_ignores_priorities() -> None:
    core = new_core(max_num_seqs=1, scheduling_policy="fcfs")
    steps = first_steps(
        listen(core, *(new_sequence(i, tokens(20, i), priority=-i) for i in range(3)))
    )
    assert steps[0] < steps[1] < steps[2]


def test_the_head_that_does_not_fit_is_not_bypassed() -> None:
    core = new_core(num_blocks=10)
    listener = listen(
        core,
        new_sequence(0, tokens(100, 0), max_tokens=10),
        new_sequence(1, tokens(100, 1), max_tokens=2),
        new_sequence(2, tokens(5, 2), max_tokens=2),
    )
    steps = first_steps(listener)
    assert steps[1] > listener.heard[0].last_token_step
    assert steps[2] >= steps[1]


def test_admission_leaves_the_watermark_free_unless_nothing_runs() -> None:
    core = new_core(num_blocks=10, watermark=0.3)
    listener = listen(
        core,
        new_sequence(0, tokens(9 * BLOCK_SIZE, 0), max_tokens=2),
        new_sequence(1, tokens(5, 1), max_tokens=2),
    )
    listener.step()
    assert (core.stats.num_running, core.stats.num_waiting) == (1, 1)
    assert len(listener.run()) == 2


def test_a_head_that_did_not_fit_starts_once_it_does_whoever_still_runs() -> None:
    core = new_core(num_blocks=10)
    listener = listen(
        core,
        new_sequence(0, tokens(60, 0), max_tokens=3),
        new_sequence(1, tokens(20, 1), max_tokens=60),
        new_sequence(2, tokens(70, 2), max_tokens=2),
    )
    steps = first_steps(listener)
    assert steps[2] == listener.heard[0].last_token_step + 1


def test_every_decode_advances_while_a_long_prompt_is_computed() -> None:
    core = new_core(num_blocks=200, max_model_len=4000, budget=32)
    listener = listen(core, *(new_sequence(i, tokens(2, i), max_tokens=60) for i in range(5)))
    listener.step()
    core.add(new_sequence(9, tokens(1000, 9), max_tokens=1))
    for _ in range(40):
        assert {output.seq_id for output in listener.step()} >= set(range(5))
    assert listener.run()[9].first_token_step <= 45


def test_a_short_prompt_does_not_wait_for_the_whole_of_a_long_one() -> None:
    core = new_core(num_blocks=300, max_model_len=4000, budget=64)
    listener = listen(core, new_sequence(0, tokens(3000, 0), max_tokens=1))
    listener.step()
    core.add(new_sequence(1, tokens(30, 1), max_tokens=1))
    listener.step()
    assert listener.heard[1].token_ids
    assert 0 not in listener.heard


def test_a_stream_of_short_prompts_does_not_starve_a_long_one() -> None:
    core = new_core(num_blocks=300, max_model_len=4000, budget=64)
    listener = listen(core, new_sequence(0, tokens(2000, 0), max_tokens=1))
    for seq_id in range(1, 200):
        core.add(new_sequence(seq_id, tokens(60, seq_id), max_tokens=1))
    listener.run()
    # Half of each step is the long one's: 2000 / 32 steps, and no more than it waits for shorts.
    assert listener.heard[0].first_token_step <= 2000 // 32 + 2
    assert listener.heard[1].first_token_step <= 3


def test_the_configured_threshold_bounds_every_chunk() -> None:
    core = new_core(budget=256, long_prefill_token_threshold=10)
    assert first_steps(listen(core, new_sequence(0, tokens(100, 0)))) == {0: 10}


def test_no_more_run_than_a_step_has_tokens() -> None:
    core = new_core(budget=3)
    listener = listen(core, *(new_sequence(i, tokens(9, i), max_tokens=9) for i in range(6)))
    while core.has_work:
        listener.step()
        assert core.stats.num_running <= 3
        assert core.stats.step_num_tokens <= 3
    assert len(listener.heard) == 6


def test_the_newest_of_the_lowest_priority_is_preempted_and_loses_nothing() -> None:
    core = new_core(num_blocks=6)
    sequences = [
        new_sequence(0, tokens(30, 0), max_tokens=40, priority=1),
        new_sequence(1, tokens(30, 1), max_tokens=40, priority=1),
        new_sequence(2, tokens(30, 2), max_tokens=40, priority=0),
    ]
    heard = run(core, *sequences)
    preempted = {seq_id: entry.outputs[-1].num_preemptions for seq_id, entry in heard.items()}
    assert preempted[2] == 0
    assert preempted[1] >= 1
    assert core.stats.num_preemptions == sum(preempted.values())
    for new in sequences:
        assert heard[new.seq_id].token_ids == expected_tokens(new)


def test_prompt_logprobs_survive_preemption_in_the_middle_of_a_prompt() -> None:
    core = new_core(num_blocks=10, budget=4)
    prompt = tokens(125, 1)
    heard = run(
        core,
        new_sequence(0, tokens(15, 0), max_tokens=60),
        new_sequence(1, prompt, prompt_logprobs=0),
    )
    first = heard[1].outputs[0]
    assert first.num_preemptions >= 1
    assert [piece.token_ids[0] for piece in first.prompt_logprobs or []] == prompt[1:]


def test_siblings_compute_their_prompt_once() -> None:
    core = new_core(num_blocks=200, budget=64)
    prompt = tokens(160, 0)
    sequences = [new_sequence(i, prompt, max_tokens=3, arrival_s=0.0) for i in range(8)]
    heard = run(core, *sequences)
    assert [entry.token_ids for entry in heard.values()] == [expected_tokens(sequences[0])] * 8
    # A full hit still computes the last token, here with the block that it is in.
    assert core.stats.num_prompt_tokens == 160 + 7 * BLOCK_SIZE


def test_a_held_sibling_lets_others_pass() -> None:
    core = new_core(num_blocks=200, budget=64)
    listener = listen(
        core,
        new_sequence(0, tokens(400, 0)),
        new_sequence(1, tokens(400, 0)),
        new_sequence(2, tokens(8, 2)),
    )
    listener.step()
    assert core.stats.num_waiting == 1
    assert 2 in listener.heard
    listener.run()


def test_a_held_sibling_goes_on_when_its_leader_is_aborted() -> None:
    core = new_core(num_blocks=200, budget=64)
    listener = listen(core, new_sequence(0, tokens(400, 0)), new_sequence(1, tokens(400, 0)))
    listener.step()
    core.abort([0])
    core.check()
    assert set(listener.run()) == {1}


def test_a_held_sibling_goes_on_when_its_leader_is_preempted() -> None:
    core = new_core(num_blocks=10, budget=4)
    listener = listen(
        core,
        new_sequence(0, tokens(15, 0), max_tokens=60),
        new_sequence(1, tokens(125, 1)),
        new_sequence(2, tokens(125, 1)),
    )
    while core.stats.num_preemptions == 0:
        listener.step()
    assert len(listener.run()) == 3


def test_a_held_sibling_can_be_aborted() -> None:
    core = new_core(num_blocks=200, budget=64)
    listener = listen(core, *(new_sequence(i, tokens(400, 0)) for i in range(3)))
    listener.step()
    core.abort([1])
    core.check()
    assert set(listener.run()) == {0, 2}


def test_a_sequence_does_not_wait_for_a_lesser_one() -> None:
    core = new_core(num_blocks=200, budget=64)
    listener = listen(core, new_sequence(0, tokens(400, 0), priority=5))
    listener.step()
    core.add(new_sequence(1, tokens(400, 0), priority=0))
    listener.step()
    assert core.stats.num_running == 2
    listener.run()


def test_aborts_free_blocks_wherever_the_sequence_is() -> None:
    core = new_core(num_blocks=10)
    listener = listen(core, *(new_sequence(i, tokens(100, i), max_tokens=50) for i in range(3)))
    listener.step()
    core.abort([0, 1, 2, 77])
    core.check()
    assert not core.has_work
    assert core.stats.num_used_blocks == 0
    assert core.stats.num_waiting_uncached_tokens == 0


def test_uncached_prompt_tokens_are_counted_until_computed() -> None:
    core = new_core(num_blocks=100, budget=50)
    listener = listen(core, new_sequence(0, tokens(120, 0)), new_sequence(1, tokens(30, 1)))
    assert core.stats.num_waiting_uncached_tokens == 150
    listener.step()
    assert core.stats.num_waiting_uncached_tokens == 100
    listener.run()
    core.add(new_sequence(2, tokens(120, 0)))
    assert core.stats.num_waiting_uncached_tokens == 120 - 7 * BLOCK_SIZE


def test_the_head_of_the_queue_says_what_it_waits_for() -> None:
    cases = {
        "seats": new_core(max_num_seqs=1),
        "kv_space": new_core(num_blocks=4),
        "budget": new_core(budget=40),
    }
    for reason, core in cases.items():
        listener = listen(core, *(new_sequence(i, tokens(30, i), max_tokens=2) for i in range(3)))
        listener.step()
        assert (core.stats.waits_for, core.stats.num_held) == (reason, 0), reason
        listener.run()
        assert core.stats.waits_for == ""


def test_held_siblings_are_counted_apart() -> None:
    core = new_core(num_blocks=200, budget=64)
    listener = listen(core, *(new_sequence(i, tokens(400, 0)) for i in range(3)))
    listener.step()
    assert (core.stats.num_waiting, core.stats.num_held) == (2, 2)
    listener.run()


def test_what_a_preemption_costs_is_counted() -> None:
    core = new_core(num_blocks=6, caching=False)
    run(core, *(new_sequence(i, tokens(30, i), max_tokens=40) for i in range(3)))
    assert core.stats.num_preemptions
    assert core.stats.num_recomputed_tokens >= 30 * core.stats.num_preemptions


def test_tokens_in_flight_of_a_sequence_that_has_ended_are_counted() -> None:
    new = new_sequence(0, tokens(20), max_tokens=40)
    stop = expected_tokens(new)[2]
    core = new_core(overlaps=True)
    run(core, new_sequence(0, tokens(20), max_tokens=40, stop_token_ids=[stop]))
    assert core.stats.num_overrun_tokens == 1
