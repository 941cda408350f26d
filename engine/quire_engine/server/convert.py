"""Between the messages of engine.proto and the engine's own types."""

from collections.abc import Mapping
from typing import Any

from quire_engine.core.messages import CoreStats, FinishReason
from quire_engine.frontend.deltas import (
    CompletionDelta,
    PositionLogprobs,
    PromptInfo,
    RequestDelta,
    Usage,
)
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.sampling_params import RequestOutputKind, SamplingParams

SCALARS = (
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "ignore_eos",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "skip_reading_prefix_cache",
)
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
}
LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")


def sampling_params(
    message: pb.SamplingParams, defaults: Mapping[str, Any], *, final_only: bool = False
) -> SamplingParams:
    """Return the parameters that a message asks for; absent fields take `defaults`.

    Raises:
        InvalidRequestError: a value out of range.
    """
    # Without a limit a completion runs until the context is full, unlike in `SamplingParams()`.
    values: dict[str, Any] = {"max_tokens": None, **defaults}
    for name in SCALARS:
        if message.HasField(name):
            values[name] = getattr(message, name)
    for name in LISTS:
        if items := getattr(message, name):
            values[name] = list(items)
    if message.logit_bias:
        values["logit_bias"] = dict(message.logit_bias)
    kind = RequestOutputKind.FINAL_ONLY if final_only else RequestOutputKind.DELTA
    return SamplingParams(**values, output_kind=kind)


def load_message(stats: CoreStats, *, epoch: int, seq: int, draining: bool) -> pb.Load:
    """Return the state after a step as routers hear of it."""
    return pb.Load(
        epoch=epoch,
        seq=seq,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        num_waiting_uncached_tokens=stats.num_waiting_uncached_tokens,
        num_used_blocks=stats.num_used_blocks,
        num_total_blocks=stats.num_total_blocks,
        prefill_tokens_per_s=stats.prefill_tokens_per_s,
        decode_step_s=stats.decode_step_s,
        num_generated_tokens=stats.num_generated_tokens,
        num_prompt_tokens=stats.num_prompt_tokens,
        num_preemptions=stats.num_preemptions,
        num_prefix_queried_tokens=stats.num_prefix_queried_tokens,
        num_prefix_hit_tokens=stats.num_prefix_hit_tokens,
        draining=draining,
    )


def fill_response(
    response: pb.GenerateResponse, delta: RequestDelta, *, tells_prompt: bool = False
) -> None:
    """Write what a step brought to a request into an empty response.

    `tells_prompt`: the engine tokenized the prompt, so the client wants to know its token ids.
    """
    for completion in delta.completions:
        _add_output(response, completion)
    if delta.prompt is not None:
        _fill_prompt(response.prompt, delta.prompt)
        if tells_prompt:
            response.prompt.prompt_token_ids.extend(delta.prompt.token_ids)
    if delta.usage is not None:
        _fill_usage(response.usage, delta.usage)


def _add_output(response: pb.GenerateResponse, completion: CompletionDelta) -> None:
    output = response.outputs.add(
        index=completion.index, token_ids=completion.token_ids, text=completion.text
    )
    if completion.logprobs is not None:
        output.logprobs.extend(map(_position, completion.logprobs))
    if completion.finish_reason is None:
        return
    output.finish_reason = FINISH_REASONS[completion.finish_reason]
    if isinstance(completion.stop_reason, str):
        output.stop_string = completion.stop_reason
    elif completion.stop_reason is not None:
        output.stop_token_id = completion.stop_reason


def _fill_prompt(message: pb.PromptInfo, prompt: PromptInfo) -> None:
    message.num_prompt_tokens = prompt.num_tokens
    message.num_cached_tokens = prompt.num_cached_tokens
    if prompt.logprobs is not None:
        message.prompt_logprobs.extend(map(_position, prompt.logprobs))


def _fill_usage(message: pb.Usage, usage: Usage) -> None:
    stats = usage.stats
    message.num_prompt_tokens = usage.num_prompt_tokens
    message.num_completion_tokens = stats.num_generation_tokens
    message.num_cached_tokens = usage.num_cached_tokens
    message.queue_s = max(stats.scheduled_ts - stats.arrival_time, 0.0)
    message.time_to_first_token_s = max(stats.first_token_latency, 0.0)
    message.generation_s = max(stats.last_token_ts - stats.first_token_ts, 0.0)
    message.num_preemptions = stats.num_preemptions


def _position(logprobs: PositionLogprobs) -> pb.PositionLogprobs:
    return pb.PositionLogprobs(
        token_ids=logprobs.token_ids,
        logprobs=logprobs.logprobs,
        ranks=logprobs.ranks,
        tokens=logprobs.tokens,
    )
