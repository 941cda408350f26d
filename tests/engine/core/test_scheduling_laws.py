"""Laws that hold for every workload: outputs depend on nothing but the sequence, and all end.

HashRunner checks the plans from its side: what it reads through a block table must be, position by
position, the context of the sequence that reads it.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from core_support import VOCAB_SIZE, Listener, expected_tokens, new_core, new_sequence
from quire_engine.core import block_content
from quire_engine.core.messages import FinishReason, NewSequence
from quire_engine.rpc.prefix import block_hash

EOS = {3}
MAX_MODEL_LEN = 120


@dataclass(frozen=True)
class Arrival:
    """A sequence, when it comes, and when its client leaves."""

    new: NewSequence
    at_step: int
    aborted_at_step: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """Draw sequences of which many share prefixes."""
    result = []
    for seq_id in range(draw(st.integers(1, 12))):
        prompt = [draw(st.integers(0, 1))] * draw(st.sampled_from([0, 16, 32, 33, 48, 64]))
        prompt += [2] * draw(st.sampled_from([1, 2, 16, 16, 30, 32]))
        new = new_sequence(
            seq_id,
            prompt,
            priority=draw(st.integers(0, 2)),
            cache_salt=draw(st.sampled_from(["", "", "other tenant"])),
            max_tokens=draw(st.integers(1, 30)),
            min_tokens=draw(st.sampled_from([0, 0, 1])),
            stop_token_ids=draw(st.sampled_from([None, [4, 5]])),
            ignore_eos=draw(st.booleans()),
            prompt_logprobs=draw(st.sampled_from([None, None, 0])),
            logprobs=draw(st.sampled_from([None, 0])),
            skip_reading_prefix_cache=draw(st.sampled_from([False, False, True])),
        )
        aborted_after = draw(st.sampled_from([None, None, None, 0, 1, 3, 10]))
        at_step = draw(st.integers(0, 60))
        aborted_at = None if aborted_after is None else at_step + aborted_after
        result.append(Arrival(new, at_step, aborted_at))
    return result


core_options = st.fixed_dictionaries(
    {
        "budget": st.sampled_from([1, 7, 16, 50, 8192]),
        "num_blocks": st.integers(7, 20),
        "caching": st.booleans(),
        "overlaps": st.booleans(),
        "max_num_seqs": st.sampled_from([1, 3, 256]),
        "watermark": st.sampled_from([0.0, 0.01, 0.3]),
        "long_prefill_token_threshold": st.sampled_from([0, 5, 32]),
        "scheduling_policy": st.sampled_from(["priority", "fcfs"]),
    }
)


def check_laws(workload: list[Arrival], options: dict[str, Any]) -> None:
    core = new_core(eos=EOS, max_model_len=MAX_MODEL_LEN, **options)
    listener = Listener(core)
    # Each step computes a token at least; recomputing what was preempted takes a multiple.
    bound = 100 + 10 * sum(len(arrival.new.prompt_token_ids) + 30 for arrival in workload)
    last_step = max(max(a.at_step, a.aborted_at_step or 0) for a in workload)
    step = 0
    while step <= last_step or core.has_work:
        for arrival in workload:
            if arrival.at_step == step:
                core.add(arrival.new)
            if arrival.aborted_at_step == step:
                core.abort([arrival.new.seq_id])
        core.check()
        if core.has_work:
            listener.step()
        step += 1
        assert step <= bound, "a sequence does not end"
    assert core.stats.num_used_blocks == 0
    for arrival in workload:
        check_outputs(arrival, listener, core.max_model_len)


def check_outputs(arrival: Arrival, listener: Listener, max_model_len: int) -> None:
    new = arrival.new
    expected = expected_tokens(new, eos=EOS, max_model_len=max_model_len)
    heard = listener.heard.get(new.seq_id)
    got = heard.token_ids if heard else []
    if arrival.aborted_at_step is not None:
        assert got == expected[: len(got)]
        return
    assert heard is not None
    assert got == expected
    assert heard.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    first, *rest = heard.outputs
    assert first.num_cached_tokens is not None
    assert first.num_cached_tokens < len(new.prompt_token_ids)
    assert first.scheduled_s is not None
    if new.params.prompt_logprobs is not None:
        pieces = first.prompt_logprobs
        assert pieces is not None
        assert [piece.token_ids[0] for piece in pieces] == new.prompt_token_ids[1:]
        assert first.num_cached_tokens == 0
    assert all(output.prompt_logprobs is None for output in rest)
    for output in heard.outputs:
        wants = new.params.logprobs is not None
        assert [p.token_ids for p in output.logprobs or []] == [output.token_ids] * wants


@settings(max_examples=250)
@given(arrivals(), core_options)
def test_outputs_depend_on_the_sequence_alone_and_every_sequence_ends(
    workload: list[Arrival], options: dict[str, Any]
) -> None:
    check_laws(workload, options)


@settings(max_examples=120)
@given(arrivals(), core_options)
def test_colliding_hashes_never_give_a_sequence_foreign_blocks(
    workload: list[Arrival], options: dict[str, Any]
) -> None:
    def colliding_hash(parent: int, packed: bytes, seed: int) -> int:
        return block_hash(parent, packed, seed) % 5 + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_content, "block_hash", colliding_hash)
        check_laws(workload, options)


def test_the_vocabulary_holds_the_stop_tokens() -> None:
    assert max(EOS) < VOCAB_SIZE
