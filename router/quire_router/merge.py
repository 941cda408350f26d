"""Several responses of one generation as one, for a reader that was not there in time."""

from collections.abc import Sequence

from quire_engine.rpc import engine_pb2 as pb


def merge_responses(responses: Sequence[pb.GenerateResponse]) -> pb.GenerateResponse:
    """Return what the responses say together. They are in order, of one request."""
    if len(responses) == 1:
        return responses[0]
    merged = pb.GenerateResponse()
    by_index: dict[int, list[pb.Output]] = {}
    for response in responses:
        for output in response.outputs:
            by_index.setdefault(output.index, []).append(output)
        if response.HasField("prompt"):
            merged.prompt.CopyFrom(response.prompt)
        if response.HasField("usage"):
            merged.usage.CopyFrom(response.usage)
    for index, outputs in by_index.items():
        _merge_outputs(merged.outputs.add(index=index), outputs)
    return merged


def _merge_outputs(merged: pb.Output, outputs: Sequence[pb.Output]) -> None:
    # Appending text piece by piece would copy it each time.
    merged.text = "".join(output.text for output in outputs)
    for output in outputs:
        merged.token_ids.extend(output.token_ids)
        merged.logprobs.extend(output.logprobs)
    last = outputs[-1]
    merged.finish_reason = last.finish_reason
    match last.WhichOneof("stop_reason"):
        case "stop_string":
            merged.stop_string = last.stop_string
        case "stop_token_id":
            merged.stop_token_id = last.stop_token_id
