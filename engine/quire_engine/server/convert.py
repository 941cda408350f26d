"""Between the messages of engine.proto and the engine's own types."""

from collections.abc import Mapping
from typing import Any

from quire_engine.core.messages import CoreStats
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
