"""The engine's last word on a request, in the shapes that users of vLLM know."""

from quire.prompts import Prompt
from quire_engine.frontend.deltas import CompletionDelta, PositionLogprobs, RequestDelta
from quire_engine.outputs import CompletionOutput, Logprob, Logprobs, RequestOutput


def request_output(delta: RequestDelta, prompt: Prompt) -> RequestOutput:
    """Turn the one delta of a request that wanted everything at the end into its output."""
    assert delta.usage is not None, "a request's last delta has its usage"
    info = delta.prompt
    return RequestOutput(
        request_id=delta.request_id,
        prompt=prompt.text,
        prompt_token_ids=info.token_ids if info is not None else list(prompt.token_ids or ()),
        outputs=[_completion_output(completion) for completion in delta.completions],
        finished=True,
        prompt_logprobs=_prompt_logprobs(info.logprobs if info is not None else None),
        num_cached_tokens=delta.usage.num_cached_tokens,
        metrics=delta.usage.stats,
    )


def _completion_output(completion: CompletionDelta) -> CompletionOutput:
    logprobs = completion.logprobs
    reason = completion.finish_reason
    return CompletionOutput(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        cumulative_logprob=None if logprobs is None else sum(each.logprobs[0] for each in logprobs),
        logprobs=None if logprobs is None else [_position(each) for each in logprobs],
        finish_reason=None if reason is None else str(reason),
        stop_reason=completion.stop_reason,
    )


def _prompt_logprobs(logprobs: list[PositionLogprobs] | None) -> list[Logprobs | None] | None:
    if logprobs is None:
        return None
    return [None, *map(_position, logprobs)]


def _position(entry: PositionLogprobs) -> Logprobs:
    texts: list[str | None] = [token.decode("utf-8", "replace") for token in entry.tokens]
    return {
        token_id: Logprob(logprob, rank, text)
        for token_id, logprob, rank, text in zip(
            entry.token_ids,
            entry.logprobs,
            entry.ranks,
            texts or [None] * len(entry.token_ids),
            strict=True,
        )
    }
