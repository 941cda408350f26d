from hypothesis import given, strategies as st

from quire_engine.rpc import engine_pb2 as pb
from quire_router.merge import merge_responses

outputs = st.builds(
    pb.Output,
    index=st.integers(0, 2),
    token_ids=st.lists(st.integers(0, 9), max_size=3),
    text=st.text("abc", max_size=3),
)
responses = st.builds(pb.GenerateResponse, outputs=st.lists(outputs, max_size=3))


def texts(items: list[pb.GenerateResponse]) -> dict[int, tuple[str, list[int]]]:
    found: dict[int, tuple[str, list[int]]] = {}
    for item in items:
        for output in item.outputs:
            text, ids = found.get(output.index, ("", []))
            found[output.index] = text + output.text, ids + list(output.token_ids)
    return found


@given(st.lists(responses, min_size=1, max_size=6))
def test_merging_loses_nothing_and_keeps_the_order(items: list[pb.GenerateResponse]) -> None:
    assert texts([merge_responses(items)]) == texts(items)


@given(st.lists(responses, min_size=2, max_size=6), st.integers(1, 5))
def test_merging_in_two_goes_is_merging_at_once(items: list[pb.GenerateResponse], cut: int) -> None:
    cut = min(cut, len(items) - 1)
    twice = merge_responses([merge_responses(items[:cut]), *items[cut:]])
    assert texts([twice]) == texts(items)


def test_first_and_last_facts_survive() -> None:
    first = pb.GenerateResponse(
        outputs=[pb.Output(text="a")], prompt=pb.PromptInfo(num_prompt_tokens=3)
    )
    last = pb.GenerateResponse(
        outputs=[pb.Output(text="b", finish_reason=pb.FINISH_REASON_STOP, stop_token_id=0)],
        usage=pb.Usage(num_completion_tokens=2),
    )

    merged = merge_responses([first, last])

    assert merged.prompt.num_prompt_tokens == 3
    assert merged.usage.num_completion_tokens == 2
    assert merged.outputs[0].finish_reason == pb.FINISH_REASON_STOP
    assert merged.outputs[0].WhichOneof("stop_reason") == "stop_token_id"


def test_logprobs_stay_one_per_token() -> None:
    items = [
        pb.GenerateResponse(
            outputs=[pb.Output(token_ids=[n], logprobs=[pb.PositionLogprobs(token_ids=[n])])]
        )
        for n in range(3)
    ]
    [output] = merge_responses(items).outputs
    assert [position.token_ids[0] for position in output.logprobs] == list(output.token_ids)
