"""Requests to sequences, and the core's outputs back to requests.

A request is validated, tokenized and fanned out to one sequence per completion; what a step brings
to its sequences is detokenized, searched for stop strings and gathered into one delta. Everything
here is synchronous and in memory: callers own the event loop, the queue and the core.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire_engine.core.messages import FinishReason, NewSequence, SequenceOutput, StepOutputs
from quire_engine.errors import (
    DrainingError,
    InvalidRequestError,
    QueueFullError,
    QuireError,
    RequestError,
)
from quire_engine.frontend.completion import Completion, GatheredCompletion, positions
from quire_engine.frontend.deltas import (
    ProcessedStep,
    PromptInfo,
    RequestDelta,
    Usage,
)
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.frontend.validation import (
    ModelLimits,
    check_params,
    check_prompt,
    checked_integers,
)
from quire_engine.outputs import RequestStats
from quire_engine.sampling_params import RequestOutputKind, SamplingParams, with_defaults

SEED_RANGE = 2**63
"""Seeds are signed 64-bit integers."""


@dataclass(slots=True, kw_only=True)
class _Request:
    """A request with sequences in the core."""

    request_id: str
    prompt_token_ids: list[int]
    completions: list[Completion]
    num_unfinished: int
    stats: RequestStats
    prompt: PromptInfo | None = None
    gathered: list[GatheredCompletion] | None = None
    """What is kept for the end, for a request that wants its outputs at once."""


@dataclass(slots=True)
class _Step:
    """What is gathered while one step is processed."""

    now: float
    deltas: dict[str, RequestDelta] = field(default_factory=dict)
    abort_seq_ids: list[int] = field(default_factory=list)


class Processor:
    """All requests of one frontend. Not thread-safe; `tokenizer` may be used from threads."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        limits: ModelLimits,
        *,
        defaults: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve one model.

        Without a tokenizer, prompts are token ids and no text comes out. `defaults` are the
        model's generation config, by field of SamplingParams.
        """
        self.tokenizer = tokenizer
        self.limits = limits
        self.defaults = dict(defaults or {})
        self._clock = clock
        self._seq_ids = itertools.count()
        self._requests: dict[str, _Request] = {}
        self._by_seq_id: dict[int, tuple[_Request, Completion]] = {}

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def sampling_params(self, **fields: Any) -> SamplingParams:
        """Build parameters; a field that is absent takes the model's default."""
        return with_defaults(self.defaults, fields)

    def add(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        arrival_s: float | None = None,
    ) -> list[NewSequence]:
        """Take a request in and return its sequences, for the core.

        A string is tokenized with the special tokens that the tokenizer adds. `request_id` is free
        again once the request has finished or was aborted. With RequestOutputKind.FINAL_ONLY the
        request gets one delta, at the end, with everything in it.

        Raises:
            InvalidRequestError: it can never succeed; nothing was taken in.
            PromptTooLongError: the prompt leaves no room for even one token.
        """
        if request_id in self._requests:
            raise InvalidRequestError(f"request_id {request_id!r} is in use", "request_id")
        check_params(params, self.limits, has_tokenizer=self.tokenizer is not None)
        token_ids = self.tokenize(prompt)
        now = self._clock()
        arrival_s = now if arrival_s is None else arrival_s
        bad_words = self._bad_words(params)
        sequences = [
            NewSequence(
                seq_id=next(self._seq_ids),
                prompt_token_ids=token_ids,
                params=completion_params,
                bad_words_token_ids=bad_words,
                priority=priority,
                arrival_s=arrival_s,
                cache_salt=cache_salt,
            )
            for completion_params in self._fan_out(params, len(token_ids))
        ]
        stats = RequestStats(arrival_time=arrival_s, queued_ts=now)
        self._register(request_id, token_ids, params, sequences, stats)
        return sequences

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids of a prompt, checked against the model's limits.

        Raises:
            InvalidRequestError: empty, out of the vocabulary, or text without a tokenizer.
            PromptTooLongError: it leaves no room for even one token.
        """
        if not isinstance(prompt, str):
            token_ids = list(prompt)
            if set(map(type, token_ids)) != {int}:
                token_ids = checked_integers("prompt", token_ids)
        elif self.tokenizer is not None:
            token_ids = self.tokenizer.encode(prompt)
        else:
            raise InvalidRequestError(
                "a text prompt needs a tokenizer, and this engine runs without one "
                "(skip_tokenizer_init); send token ids",
                "prompt",
            )
        check_prompt(token_ids, self.limits)
        return token_ids

    def stats(self, request_id: str) -> RequestStats:
        """Return the times of a request in flight; they are updated as it goes on."""
        return self._requests[request_id].stats

    def abort(self, request_ids: Iterable[str]) -> list[int]:
        """Forget requests, and return what the core must abort. Unknown ids are ignored."""
        return [
            seq_id
            for request_id in request_ids
            if (request := self._requests.get(request_id)) is not None
            for seq_id in self._forget(request)
        ]

    def process(self, outputs: StepOutputs) -> ProcessedStep:
        """Turn what a step produced into deltas, at most one per request."""
        step = _Step(self._clock())
        for output in outputs.outputs:
            # A sequence may be unknown: aborted, while its output was on the way.
            if (found := self._by_seq_id.get(output.seq_id)) is None:
                continue
            if output.finish_reason == FinishReason.ERROR:
                self._fail(found[0], output, step)
            else:
                self._advance(*found, output, step)
        return ProcessedStep(deltas=list(step.deltas.values()), abort_seq_ids=step.abort_seq_ids)

    def _register(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        sequences: list[NewSequence],
        stats: RequestStats,
    ) -> None:
        completions = [
            Completion(sequence.seq_id, index, token_ids, params, self.tokenizer)
            for index, sequence in enumerate(sequences)
        ]
        request = _Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            completions=completions,
            num_unfinished=len(completions),
            stats=stats,
        )
        if params.output_kind == RequestOutputKind.FINAL_ONLY:
            request.gathered = [GatheredCompletion() for _ in completions]
        self._requests[request_id] = request
        for completion in completions:
            self._by_seq_id[completion.seq_id] = request, completion

    def _fan_out(self, params: SamplingParams, num_prompt_tokens: int) -> list[SamplingParams]:
        """Return the parameters of each completion, with limits that fit the context."""
        room = self.limits.max_model_len - num_prompt_tokens
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        common = params.clone(
            n=1, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens)
        )
        if params.n == 1:
            return [common]
        return [
            common.clone(
                seed=None if params.seed is None else _wrapped_seed(params.seed + index),
                # The same for all, so only the first computes them.
                prompt_logprobs=params.prompt_logprobs if index == 0 else None,
            )
            for index in range(params.n)
        ]

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        if self.tokenizer is None or not params.bad_words:
            return []
        return bad_words_token_ids(params.bad_words, self.tokenizer, self.limits.vocab_size)

    def _advance(
        self, request: _Request, completion: Completion, output: SequenceOutput, step: _Step
    ) -> None:
        _note_times(request.stats, output, step.now)
        news = completion.advance(output)
        is_first = request.prompt is None and completion.index == 0
        if is_first:
            request.prompt = self._prompt_info(request, output)
        if request.gathered is not None:
            request.gathered[completion.index].add(news)
        else:
            delta = step.deltas.get(request.request_id)
            if delta is None:
                delta = RequestDelta(request_id=request.request_id)
                step.deltas[request.request_id] = delta
            delta.completions.append(news)
            if is_first:
                delta.prompt = request.prompt
        if news.finish_reason is not None:
            if output.finish_reason is None:
                step.abort_seq_ids.append(completion.seq_id)
            self._finish(request, completion, step)

    def _prompt_info(self, request: _Request, output: SequenceOutput) -> PromptInfo:
        logprobs = output.prompt_logprobs
        pieces = self.tokenizer.pieces if self.tokenizer is not None else None
        return PromptInfo(
            token_ids=request.prompt_token_ids,
            num_cached_tokens=output.num_cached_tokens or 0,
            logprobs=None if logprobs is None else positions(logprobs, pieces),
        )

    def _finish(self, request: _Request, completion: Completion, step: _Step) -> None:
        """End one completion, and the request with its last."""
        del self._by_seq_id[completion.seq_id]
        request.num_unfinished -= 1
        if request.num_unfinished:
            return
        del self._requests[request.request_id]
        if request.gathered is not None:
            step.deltas[request.request_id] = RequestDelta(
                request_id=request.request_id,
                completions=[gathered.whole() for gathered in request.gathered],
                prompt=request.prompt,
            )
        step.deltas[request.request_id].usage = _usage(request)

    def _fail(self, request: _Request, output: SequenceOutput, step: _Step) -> None:
        """End a request whose sequence failed; its other completions are worth nothing alone."""
        seq_ids = self._forget(request)
        step.abort_seq_ids += [seq_id for seq_id in seq_ids if seq_id != output.seq_id]
        step.deltas[request.request_id] = RequestDelta(
            request_id=request.request_id, error=_error_of(output)
        )

    def _forget(self, request: _Request) -> list[int]:
        """Drop a request and return its sequences that have not ended."""
        del self._requests[request.request_id]
        seq_ids = [completion.seq_id for completion in request.completions]
        return [seq_id for seq_id in seq_ids if self._by_seq_id.pop(seq_id, None) is not None]


def bad_words_token_ids(
    bad_words: Sequence[str], tokenizer: Tokenizer, vocab_size: int
) -> list[list[int]]:
    """Return the token sequences that bad words are written as, at a text's start and within it.

    Raises:
        InvalidRequestError: a word that has no tokens of this model.
    """
    found: list[list[int]] = []
    for word in bad_words:
        bare = word.lstrip(" ")
        plain, spaced = tokenizer.encode_batch([bare, " " + bare], add_special_tokens=False)
        if not plain or max(plain) >= vocab_size:
            raise InvalidRequestError(f"bad_words: {word!r} has no tokens", "bad_words")
        found.append(plain)
        # As vLLM: a spaced form that only puts a token before the plain one adds nothing.
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            found.append(spaced)
    return found


def _note_times(stats: RequestStats, output: SequenceOutput, now: float) -> None:
    if output.token_ids:
        stats.last_token_ts = now
        if not stats.first_token_ts:
            stats.first_token_ts = now
    if output.scheduled_s is not None and not stats.scheduled_ts:
        stats.scheduled_ts = output.scheduled_s


def _usage(request: _Request) -> Usage:
    completions, stats = request.completions, request.stats
    stats.num_generation_tokens = sum(completion.num_tokens for completion in completions)
    stats.num_preemptions = sum(completion.num_preemptions for completion in completions)
    return Usage(
        num_prompt_tokens=len(request.prompt_token_ids),
        num_cached_tokens=request.prompt.num_cached_tokens if request.prompt is not None else 0,
        stats=stats,
    )


def _wrapped_seed(seed: int) -> int:
    return (seed + SEED_RANGE) % (2 * SEED_RANGE) - SEED_RANGE


def _error_of(output: SequenceOutput) -> QuireError:
    """Return the error that the core reported, of the kind that it was there."""
    message = output.error or "the engine failed"
    match output.error_kind:
        case "InvalidRequestError" | "PromptTooLongError":
            return InvalidRequestError(message, "prompt")
        case "QueueFullError":
            # Made there from numbers that are not known here; only the message travels.
            return QueueFullError.__new__(QueueFullError, message)
        case "DrainingError":
            return DrainingError()
    return RequestError(message)
