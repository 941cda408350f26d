import pytest

from quire_engine.core.messages import FinishReason
from quire_engine.errors import InvalidRequestError
from quire_engine.frontend.deltas import (
    CompletionDelta,
    PositionLogprobs,
    PromptInfo,
    RequestDelta,
    Usage,
)
from quire_engine.outputs import RequestStats
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.sampling_params import RequestOutputKind
from quire_engine.server.convert import fill_response, sampling_params


def test_an_absent_field_is_not_a_zero() -> None:
    params = sampling_params(pb.SamplingParams(), {})

    assert (params.temperature, params.top_p, params.n) == (1.0, 1.0, 1)
    assert params.max_tokens is None
    assert params.output_kind == RequestOutputKind.DELTA


def test_a_given_zero_is_a_zero() -> None:
    assert sampling_params(pb.SamplingParams(temperature=0.0), {"temperature": 0.7}).is_greedy


def test_defaults_of_the_model_fill_what_is_absent() -> None:
    params = sampling_params(pb.SamplingParams(top_k=5), {"temperature": 0.7, "max_tokens": 99})

    assert (params.temperature, params.max_tokens, params.top_k) == (0.7, 99, 5)


def test_every_field_of_the_message_arrives() -> None:
    message = pb.SamplingParams(
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.05,
        seed=-7,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        max_tokens=20,
        min_tokens=3,
        logprobs=2,
        prompt_logprobs=1,
        detokenize=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        include_stop_str_in_output=True,
        logit_bias={5: -1.5},
        allowed_token_ids=[5, 6],
        bad_words=["x"],
        skip_reading_prefix_cache=True,
    )

    params = sampling_params(message, {}, final_only=True)

    for descriptor in pb.SamplingParams.DESCRIPTOR.fields:
        sent = getattr(message, descriptor.name)
        if descriptor.name == "logit_bias":
            assert params.logit_bias == dict(sent)
        elif descriptor.is_repeated:
            assert getattr(params, descriptor.name) == list(sent)
        else:
            assert getattr(params, descriptor.name) == sent
    assert params.output_kind == RequestOutputKind.FINAL_ONLY


def test_a_value_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="temperature"):
        sampling_params(pb.SamplingParams(temperature=9.0), {})


def test_a_delta_becomes_a_response_with_all_it_holds() -> None:
    position = PositionLogprobs(
        token_ids=[7, 8], logprobs=[-0.5, -1.0], ranks=[1, 2], tokens=[b"a", b"\xff"]
    )
    delta = RequestDelta(
        request_id="r",
        completions=[
            CompletionDelta(index=0, token_ids=[7], text="a", logprobs=[position]),
            CompletionDelta(
                index=1, token_ids=[8], finish_reason=FinishReason.STOP, stop_reason="END"
            ),
            CompletionDelta(index=2, token_ids=[9], finish_reason=FinishReason.STOP, stop_reason=9),
            CompletionDelta(index=3, token_ids=[9], finish_reason=FinishReason.LENGTH),
        ],
        prompt=PromptInfo(token_ids=[1, 2, 3], num_cached_tokens=2, logprobs=[position]),
        usage=Usage(
            num_prompt_tokens=3,
            num_cached_tokens=2,
            stats=RequestStats(
                arrival_time=10.0,
                scheduled_ts=10.5,
                first_token_ts=11.0,
                last_token_ts=13.0,
                num_generation_tokens=4,
                num_preemptions=1,
            ),
        ),
    )
    response = pb.GenerateResponse()

    fill_response(response, delta, tells_prompt=True)

    assert [output.index for output in response.outputs] == [0, 1, 2, 3]
    assert response.outputs[0].logprobs[0].tokens == [b"a", b"\xff"]
    assert response.outputs[0].finish_reason == pb.FINISH_REASON_UNSPECIFIED
    assert response.outputs[1].stop_string == "END"
    assert response.outputs[2].stop_token_id == 9
    assert response.outputs[3].WhichOneof("stop_reason") is None
    assert response.prompt.num_cached_tokens == 2
    assert response.prompt.prompt_token_ids == [1, 2, 3]
    assert len(response.prompt.prompt_logprobs) == 1
    assert response.usage == pb.Usage(
        num_prompt_tokens=3,
        num_completion_tokens=4,
        num_cached_tokens=2,
        queue_s=0.5,
        time_to_first_token_s=1.0,
        generation_s=2.0,
        num_preemptions=1,
    )


def test_the_prompt_is_not_sent_back_to_who_sent_its_tokens() -> None:
    response = pb.GenerateResponse()
    prompt = PromptInfo(token_ids=[1, 2, 3], num_cached_tokens=0)

    fill_response(response, RequestDelta(request_id="r", prompt=prompt))

    assert response.prompt.num_prompt_tokens == 3
    assert not response.prompt.prompt_token_ids
