"""What a step brought to requests: the form that the server and `LLM` turn into their own."""

from dataclasses import dataclass, field

from quire_engine.core.messages import FinishReason
from quire_engine.errors import QuireError
from quire_engine.outputs import RequestStats


@dataclass(slots=True, kw_only=True)
class PositionLogprobs:
    """Logprobs of one position: the chosen (or prompt) token first, then the top ones in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """1 is the most likely token of the vocabulary."""
    tokens: list[bytes]
    """What each token stands for, not necessarily UTF-8 on its own; empty without a tokenizer."""


@dataclass(slots=True, kw_only=True)
class CompletionDelta:
    """What is new of one completion of a request."""

    index: int
    """Which of the n completions."""
    token_ids: list[int]
    """A stop token or end-of-sequence is included, and so are the tokens of a stop string."""
    text: str = ""
    """Never splits a character; what may become a stop string is held back."""
    logprobs: list[PositionLogprobs] | None = None
    """One per token, when asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token id or the stop string that ended it; None for end-of-sequence."""


@dataclass(slots=True, kw_only=True)
class PromptInfo:
    """What there is to know about a request's prompt once the first token is out."""

    token_ids: list[int]
    num_cached_tokens: int
    """Prompt tokens that were found in the cache."""
    logprobs: list[PositionLogprobs] | None = None
    """Positions from the second prompt token on, when asked for."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True, kw_only=True)
class Usage:
    """What a finished request used, over all its completions."""

    num_prompt_tokens: int
    num_cached_tokens: int
    stats: RequestStats
    """`stats.num_generation_tokens` counts the completions' tokens."""


@dataclass(slots=True, kw_only=True)
class RequestDelta:
    """What one step brought to one request."""

    request_id: str
    completions: list[CompletionDelta] = field(default_factory=list)
    prompt: PromptInfo | None = None
    """With the first output of completion 0."""
    usage: Usage | None = None
    """With the last output."""
    error: QuireError | None = None
    """The request failed: nothing more follows, and no usage."""

    @property
    def finished(self) -> bool:
        return self.usage is not None or self.error is not None


@dataclass(slots=True, kw_only=True)
class ProcessedStep:
    """What to tell the requests, and what to tell the core, after one step."""

    deltas: list[RequestDelta] = field(default_factory=list)
    abort_seq_ids: list[int] = field(default_factory=list)
    """Sequences that the core still runs and that must end: a stop string was found."""
