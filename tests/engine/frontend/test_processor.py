from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from quire_engine.core.messages import (
    FinishReason,
    SequenceOutput,
    StepOutputs,
    TokenLogprobs,
)
from quire_engine.errors import (
    DrainingError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
)
from quire_engine.frontend.deltas import ProcessedStep, RequestDelta
from quire_engine.frontend.processor import Processor
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.frontend.validation import ModelLimits
from quire_engine.sampling_params import RequestOutputKind, SamplingParams
from tiny_tokenizers import byte_level_json

TOKENIZER = Tokenizer.from_json(byte_level_json())
VOCAB_SIZE = 280
EOS = TOKENIZER.get_vocab()["</s>"]


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_processor(
    tokenizer: Tokenizer | None = TOKENIZER, *, max_model_len: int = 50, max_logprobs: int = 20
) -> Processor:
    limits = ModelLimits(
        max_model_len=max_model_len, vocab_size=VOCAB_SIZE, max_logprobs=max_logprobs
    )
    return Processor(tokenizer, limits, clock=Clock())


def step(*outputs: SequenceOutput) -> StepOutputs:
    return StepOutputs(outputs=list(outputs))


def output(seq_id: int, token_ids: Sequence[int] | bytes, **fields: Any) -> SequenceOutput:
    return SequenceOutput(seq_id=seq_id, token_ids=list(token_ids), **fields)


def only(processed: ProcessedStep) -> RequestDelta:
    [delta] = processed.deltas
    return delta


def test_a_text_prompt_is_tokenized_and_a_list_is_taken_as_it_is() -> None:
    processor = make_processor()

    [from_text] = processor.add("a", "hi", SamplingParams())
    [from_ids] = processor.add("b", np.array([1, 2]), SamplingParams())  # type: ignore[arg-type]  # users do

    assert from_text.prompt_token_ids == list(b"hi")
    assert from_ids.prompt_token_ids == [1, 2]
    assert {type(token_id) for token_id in from_ids.prompt_token_ids} == {int}
    assert from_text.seq_id != from_ids.seq_id


def test_a_sequence_carries_priority_salt_and_arrival() -> None:
    processor = make_processor()

    [sequence] = processor.add(
        "a", "hi", SamplingParams(), priority=3, cache_salt="s", arrival_s=7.0
    )

    assert (sequence.priority, sequence.cache_salt, sequence.arrival_s) == (3, "s", 7.0)


@pytest.mark.parametrize(
    ("prompt", "fields", "message", "param"),
    [
        ("", {}, "the prompt is empty", "prompt"),
        ([], {}, "the prompt is empty", "prompt"),
        ([1, 280], {}, "prompt holds token id 280; this model's are 0 to 279", "prompt"),
        ([-1], {}, "prompt holds token id -1", "prompt"),
        ([1.5], {}, "prompt must hold token ids, got 1.5 of type float", "prompt"),
        ([True], {}, "prompt must hold token ids, got True of type bool", "prompt"),
        ("\ud800", {}, "not valid Unicode", "prompt"),
        ("a", {"logprobs": 21}, "logprobs must be at most 20 .*, got 21", "logprobs"),
        ("a", {"prompt_logprobs": -1}, "the whole vocabulary; at most 20", "prompt_logprobs"),
        ("a", {"stop_token_ids": [280]}, "stop_token_ids holds token id 280", "stop_token_ids"),
        ("a", {"allowed_token_ids": [-2]}, "holds token id -2", "allowed_token_ids"),
        ("a", {"logit_bias": {999: 1.0}}, "logit_bias holds token id 999", "logit_bias"),
        ("a", {"bad_words": ["  "]}, "'  ' has no tokens", "bad_words"),
    ],
)
def test_a_request_that_the_model_cannot_serve_is_refused(
    prompt: Any, fields: dict[str, Any], message: str, param: str
) -> None:
    processor = make_processor()

    with pytest.raises(InvalidRequestError, match=message) as refusal:
        processor.add("a", prompt, SamplingParams(**fields))

    assert refusal.value.param == param
    assert processor.num_requests == 0


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers() -> None:
    processor = make_processor(max_model_len=4)

    with pytest.raises(PromptTooLongError, match=r"4 tokens; .* maximum context length is 4 tok"):
        processor.add("a", [1] * 4, SamplingParams())

    assert processor.add("a", [1] * 3, SamplingParams())[0].params.max_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ("text", {}, "prompt"),
        ([1], {"stop": "x"}, "stop"),
        ([1], {"bad_words": ["x"]}, "bad_words"),
    ],
)
def test_what_needs_a_tokenizer_is_refused_without_one(
    prompt: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError, match="needs a tokenizer") as refusal:
        make_processor(None).add("a", prompt, SamplingParams(**fields))

    assert refusal.value.param == param


def test_minus_one_logprobs_need_a_limit_that_allows_the_vocabulary() -> None:
    processor = make_processor(max_logprobs=-1)

    [sequence] = processor.add("a", "x", SamplingParams(logprobs=-1))

    assert sequence.params.logprobs == -1


def test_an_id_in_use_is_refused_and_free_again_after_the_end() -> None:
    processor = make_processor()
    [first] = processor.add("a", "x", SamplingParams())

    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        processor.add("a", "x", SamplingParams())
    processor.process(step(output(first.seq_id, [EOS], finish_reason=FinishReason.STOP)))

    assert processor.add("a", "x", SamplingParams())


def test_max_tokens_is_capped_by_what_the_prompt_leaves() -> None:
    processor = make_processor(max_model_len=10)

    def capped(**fields: Any) -> tuple[int | None, int]:
        [sequence] = processor.add(str(fields), [1] * 7, SamplingParams(**fields))
        return sequence.params.max_tokens, sequence.params.min_tokens

    assert capped(max_tokens=None) == (3, 0)
    assert capped(max_tokens=2) == (2, 0)
    assert capped(max_tokens=100, min_tokens=50) == (3, 3)


def test_each_of_n_completions_has_a_seed_of_its_own() -> None:
    processor = make_processor()

    sequences = processor.add("a", "x", SamplingParams(n=3, seed=2**63 - 2, prompt_logprobs=1))

    assert [each.params.seed for each in sequences] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert [each.params.n for each in sequences] == [1, 1, 1]
    assert [each.params.prompt_logprobs for each in sequences] == [1, None, None]


def test_bad_words_are_tokenized_with_and_without_a_leading_space() -> None:
    spaced = make_processor().add("a", "x", SamplingParams(bad_words=["a"]))
    unspaced = make_processor().add("a", "x", SamplingParams(bad_words=["zz"]))

    # The vocabulary has no merges: " a" is two tokens, longer than "a", and adds nothing.
    assert spaced[0].bad_words_token_ids == [[ord("a")]]
    assert unspaced[0].bad_words_token_ids == [[ord("z")] * 2]


def test_a_delta_holds_what_is_new_of_every_completion() -> None:
    processor = make_processor()
    first, second = processor.add("a", "x", SamplingParams(n=2))

    delta = only(
        processor.process(
            step(output(first.seq_id, b"h\xc3", num_cached_tokens=16), output(second.seq_id, b"j"))
        )
    )
    later = only(processor.process(step(output(first.seq_id, b"\xa9"))))

    assert [(each.index, each.token_ids, each.text) for each in delta.completions] == [
        (0, [104, 0xC3], "h"),
        (1, [106], "j"),
    ]
    assert delta.prompt is not None
    assert (delta.prompt.num_tokens, delta.prompt.num_cached_tokens) == (1, 16)
    assert not delta.finished
    assert [each.text for each in later.completions] == ["\N{LATIN SMALL LETTER E WITH ACUTE}"]
    assert later.prompt is None


def test_the_last_delta_has_usage_and_timings() -> None:
    processor = make_processor()
    clock = processor._clock
    assert isinstance(clock, Clock)
    first, second = processor.add("a", "xyz", SamplingParams(n=2), arrival_s=99.0)

    clock.now = 103.0
    processor.process(
        step(
            output(first.seq_id, b"ab", num_cached_tokens=2, scheduled_s=101.0, num_preemptions=2),
            output(second.seq_id, b"c", finish_reason=FinishReason.LENGTH, num_preemptions=1),
        )
    )
    clock.now = 105.0
    delta = only(
        processor.process(
            step(output(first.seq_id, b"d", finish_reason=FinishReason.LENGTH, num_preemptions=3))
        )
    )

    assert delta.finished
    assert delta.usage is not None
    stats = delta.usage.stats
    assert (delta.usage.num_prompt_tokens, delta.usage.num_cached_tokens) == (3, 2)
    assert (stats.num_generation_tokens, stats.num_preemptions) == (4, 4)
    assert (stats.arrival_time, stats.queued_ts, stats.scheduled_ts) == (99.0, 100.0, 101.0)
    assert (stats.first_token_ts, stats.last_token_ts) == (103.0, 105.0)
    assert processor.num_requests == 0


@pytest.mark.parametrize(("includes", "text"), [(False, "ok"), (True, "ok</s>")])
def test_the_token_that_ends_it_is_reported_but_is_text_only_on_request(
    includes: bool, text: str
) -> None:
    processor = make_processor()
    params = SamplingParams(include_stop_str_in_output=includes, skip_special_tokens=False)
    [sequence] = processor.add("a", "x", params)

    delta = only(
        processor.process(
            step(
                output(
                    sequence.seq_id,
                    [*b"ok", EOS],
                    finish_reason=FinishReason.STOP,
                    stop_token_id=EOS,
                )
            )
        )
    )

    [completion] = delta.completions
    assert completion.token_ids == [*b"ok", EOS]
    assert (completion.text, completion.stop_reason) == (text, EOS)


def test_a_stop_string_ends_the_sequence_and_drops_what_follows_it() -> None:
    processor = make_processor()
    [sequence] = processor.add("a", "x", SamplingParams(stop=["END"], logprobs=0))
    entry = TokenLogprobs(token_ids=[1], logprobs=[-0.5], ranks=[1])

    held = only(processor.process(step(output(sequence.seq_id, b"okE", logprobs=[entry] * 3))))
    processed = processor.process(step(output(sequence.seq_id, b"NDmore", logprobs=[entry] * 6)))
    late = processor.process(step(output(sequence.seq_id, b"still running")))

    [completion] = only(processed).completions
    assert held.completions[0].text == "ok"
    assert (completion.text, completion.token_ids) == ("", list(b"ND"))
    assert len(completion.logprobs or ()) == 2
    assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, "END")
    assert processed.abort_seq_ids == [sequence.seq_id]
    usage = only(processed).usage
    assert usage is not None
    assert usage.stats.num_generation_tokens == 5
    assert late == ProcessedStep()


def test_a_stop_string_completed_by_the_last_token_wins_over_length() -> None:
    processor = make_processor()
    [sequence] = processor.add("a", "x", SamplingParams(stop=["END"]))

    processed = processor.process(
        step(output(sequence.seq_id, b"aEND", finish_reason=FinishReason.LENGTH))
    )

    [completion] = only(processed).completions
    assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, "END")
    assert processed.abort_seq_ids == []


def test_what_was_held_back_is_given_out_when_the_completion_ends() -> None:
    processor = make_processor()
    [sequence] = processor.add("a", "x", SamplingParams(stop=["END"]))

    processed = processor.process(
        step(output(sequence.seq_id, b"aEN\xc3", finish_reason=FinishReason.LENGTH))
    )

    assert only(processed).completions[0].text == "aEN\ufffd"


def test_min_tokens_gates_stop_strings() -> None:
    processor = make_processor()
    [sequence] = processor.add("a", "x", SamplingParams(stop=["b"], min_tokens=3))

    texts = [
        only(processor.process(step(output(sequence.seq_id, [byte])))).completions[0].text
        for byte in b"abcb"
    ]

    assert "".join(texts) == "abc"
    assert processor.num_requests == 0


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(list(b"abc\xc3\xa9")), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=2),
    st.integers(0, 4),
    st.data(),
)
def test_the_completion_is_the_same_however_steps_bundle_its_tokens(
    token_ids: list[int], stops: list[str], min_tokens: int, data: st.DataObject
) -> None:
    def run(parts: list[list[int]]) -> tuple[str, list[int], Any, Any]:
        processor = make_processor()
        params = SamplingParams(stop=stops, min_tokens=min_tokens)
        [sequence] = processor.add("a", "x", params)
        text, ids = "", []
        reason: Any = None
        stop_reason: Any = None
        for index, part in enumerate(parts):
            last = FinishReason.LENGTH if index == len(parts) - 1 else None
            processed = processor.process(step(output(sequence.seq_id, part, finish_reason=last)))
            for delta in processed.deltas:
                [completion] = delta.completions
                text += completion.text
                ids += completion.token_ids
                reason, stop_reason = completion.finish_reason, completion.stop_reason
        return text, ids, reason, stop_reason

    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=4)))
    parts = [
        token_ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(token_ids)], strict=True)
    ]

    assert run(parts) == run([[token_id] for token_id in token_ids])


def test_logprobs_carry_the_bytes_of_their_tokens() -> None:
    processor = make_processor()
    [sequence] = processor.add("a", "xy", SamplingParams(logprobs=1, prompt_logprobs=0))
    entry = TokenLogprobs(token_ids=[0xC3, 65], logprobs=[-0.1, -2.0], ranks=[1, 2])
    prompt_entry = TokenLogprobs(token_ids=[ord("y")], logprobs=[-1.0], ranks=[4])

    delta = only(
        processor.process(
            step(output(sequence.seq_id, [0xC3], logprobs=[entry], prompt_logprobs=[prompt_entry]))
        )
    )

    [position] = delta.completions[0].logprobs or []
    assert (position.token_ids, position.tokens, position.ranks) == (
        [0xC3, 65],
        [b"\xc3", b"A"],
        [1, 2],
    )
    assert delta.prompt is not None
    assert [each.tokens for each in delta.prompt.logprobs or ()] == [[b"y"]]


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
def test_without_detokenizing_there_are_token_ids_alone(tokenizer: Tokenizer | None) -> None:
    processor = make_processor(tokenizer)
    params = SamplingParams(detokenize=tokenizer is None)
    [sequence] = processor.add("a", [1], params)

    delta = only(processor.process(step(output(sequence.seq_id, b"abc"))))

    assert (delta.completions[0].text, delta.completions[0].token_ids) == ("", list(b"abc"))


def test_final_only_gives_one_delta_with_everything() -> None:
    processor = make_processor()
    params = SamplingParams(n=2, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
    first, second = processor.add("a", "xy", params)
    entry = TokenLogprobs(token_ids=[1], logprobs=[-0.5], ranks=[1])

    def ended(seq_id: int, token_ids: bytes) -> SequenceOutput:
        return output(
            seq_id,
            token_ids,
            finish_reason=FinishReason.LENGTH,
            logprobs=[entry] * len(token_ids),
        )

    silent = [
        processor.process(
            step(output(first.seq_id, b"a\xc3", logprobs=[entry] * 2, num_cached_tokens=1))
        ),
        processor.process(step(ended(second.seq_id, b"z"))),
    ]
    delta = only(processor.process(step(ended(first.seq_id, b"\xa9"))))

    assert silent == [ProcessedStep(), ProcessedStep()]
    assert [(each.index, each.text) for each in delta.completions] == [
        (0, "a\N{LATIN SMALL LETTER E WITH ACUTE}"),
        (1, "z"),
    ]
    assert [len(each.logprobs or ()) for each in delta.completions] == [3, 1]
    assert delta.prompt is not None
    assert delta.prompt.num_cached_tokens == 1
    assert delta.usage is not None


def test_aborting_returns_the_sequences_that_still_run() -> None:
    processor = make_processor()
    first, second = processor.add("a", "x", SamplingParams(n=2))
    processor.process(step(output(first.seq_id, b"a", finish_reason=FinishReason.LENGTH)))

    aborted = processor.abort(["a", "unknown"])
    late = processor.process(step(output(second.seq_id, b"b")))

    assert aborted == [second.seq_id]
    assert late == ProcessedStep()
    assert processor.num_requests == 0


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("PromptTooLongError", InvalidRequestError),
        ("QueueFullError", QueueFullError),
        ("DrainingError", DrainingError),
        (None, RequestError),
    ],
)
def test_a_failed_sequence_fails_its_request_with_the_error_of_the_core(
    kind: str | None, type_: type[RequestError]
) -> None:
    processor = make_processor()
    first, second = processor.add("a", "x", SamplingParams(n=2))
    message = "the engine is draining and takes no new requests"

    processed = processor.process(
        step(
            output(first.seq_id, b"a"),
            output(
                second.seq_id, [], finish_reason=FinishReason.ERROR, error=message, error_kind=kind
            ),
        )
    )

    delta = only(processed)
    assert delta.finished
    assert type(delta.error) is type_
    assert str(delta.error) == message
    assert delta.completions == []
    assert processed.abort_seq_ids == [first.seq_id]
    assert processor.num_requests == 0


def test_the_models_defaults_fill_what_a_request_leaves_open() -> None:
    limits = ModelLimits(max_model_len=10, vocab_size=VOCAB_SIZE)
    processor = Processor(None, limits, defaults={"temperature": 0.2, "top_p": 0.9})

    params = processor.sampling_params(top_p=0.5, max_tokens=3)

    assert (params.temperature, params.top_p, params.max_tokens) == (0.2, 0.5, 3)
