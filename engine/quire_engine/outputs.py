"""What a generation returns, with the field names of vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token at one position."""

    logprob: float
    rank: int | None = None
    """1 for the most likely token of the vocabulary."""
    decoded_token: str | None = None


Logprobs = Mapping[int, Logprob]
"""The sampled token and the top alternatives of one position, by token id."""


@dataclass(slots=True, kw_only=True)
class RequestStats:
    """When things happened to a request (`time.monotonic`), and how much it produced."""

    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_generation_tokens: int = 0
    num_preemptions: int = 0

    @property
    def first_token_latency(self) -> float:
        return self.first_token_ts - self.arrival_time


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of the `n` completions of a request."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    """None while running; then "stop", "length", "abort" or "error"."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for end-of-sequence."""

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A request and what it has produced so far (or since the last output, for DELTA)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[Logprobs | None] | None = None
    """One entry per prompt token; the first is None, since nothing predicts it."""
    num_cached_tokens: int | None = None
    metrics: RequestStats = field(default_factory=RequestStats)
