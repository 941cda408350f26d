"""What a generation has produced so far, in the terms of OpenAI's responses."""

from dataclasses import dataclass, field
from typing import Any

from quire_engine.rpc.engine_pb2 import (
    FINISH_REASON_ABORT,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    GenerateResponse,
    Output,
    PositionLogprobs,
)

FINISH_REASONS = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_ABORT: "abort",
}


def finish_reason(output: Output) -> str | None:
    """Return why a completion has ended; None while it has not."""
    return FINISH_REASONS.get(output.finish_reason)


def stop_reason(output: Output) -> str | int | None:
    """Return the stop string or stop token that ended a completion; None for end-of-sequence."""
    which = output.WhichOneof("stop_reason")
    value: str | int | None = getattr(output, which) if which else None
    return value


@dataclass(slots=True)
class Usage:
    """Tokens of a whole request, all its prompts and completions together."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int = 0

    def add(self, response: GenerateResponse) -> None:
        """Count a response. Each output's tokens are counted as they come."""
        if response.HasField("prompt"):
            self.num_prompt_tokens += response.prompt.num_prompt_tokens
            self.num_cached_tokens += response.prompt.num_cached_tokens
        for output in response.outputs:
            self.num_completion_tokens += len(output.token_ids)

    def render(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


@dataclass(slots=True)
class Candidate:
    """One completion of a prompt."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, output: Output) -> None:
        self.text += output.text
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.finish_reason = finish_reason(output) or self.finish_reason
        if self.stop_reason is None:
            self.stop_reason = stop_reason(output)

    @property
    def mean_logprob(self) -> float:
        """By which `best_of` ranks: of the tokens chosen."""
        if not self.logprobs:
            return 0.0
        return sum(position.logprobs[0] for position in self.logprobs) / len(self.logprobs)


@dataclass(slots=True)
class Result:
    """Everything that came of one prompt."""

    candidates: list[Candidate]
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)

    @classmethod
    def empty(cls, num_candidates: int) -> "Result":
        """Return the result of a prompt before anything came of it."""
        return cls([Candidate() for _ in range(num_candidates)])

    def add(self, response: GenerateResponse) -> None:
        if response.HasField("prompt"):
            self.prompt_logprobs.extend(response.prompt.prompt_logprobs)
        for output in response.outputs:
            self.candidates[output.index].add(output)

    def best(self, num: int) -> list[Candidate]:
        """Return the `num` most likely candidates."""
        if num >= len(self.candidates):
            return self.candidates
        return sorted(self.candidates, key=lambda item: item.mean_logprob, reverse=True)[:num]
