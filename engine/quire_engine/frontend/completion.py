"""One completion as it grows: what the core says of its sequence, turned into text."""

from collections.abc import Sequence

from quire_engine.core.messages import FinishReason, SequenceOutput, TokenLogprobs
from quire_engine.frontend.deltas import CompletionDelta, PositionLogprobs
from quire_engine.frontend.detokenizer import Detokenizer
from quire_engine.frontend.stop import StopStrings
from quire_engine.frontend.tokenizer import Pieces, Tokenizer
from quire_engine.sampling_params import SamplingParams


class Completion:
    """State of one completion between steps."""

    __slots__ = (
        "_detokenizer",
        "_min_tokens",
        "_pieces",
        "_shows_stop_token",
        "_stop",
        "index",
        "num_preemptions",
        "num_tokens",
        "seq_id",
    )

    def __init__(
        self,
        seq_id: int,
        index: int,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.seq_id = seq_id
        self.index = index
        self.num_tokens = 0
        self.num_preemptions = 0
        self._pieces = tokenizer.pieces if tokenizer is not None else None
        self._min_tokens = params.min_tokens
        self._shows_stop_token = params.include_stop_str_in_output
        self._stop: StopStrings | None = None
        self._detokenizer: Detokenizer | None = None
        if tokenizer is None or not params.detokenize:
            return
        self._detokenizer = Detokenizer(
            tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens
        )
        if params.stop_strings:
            self._stop = StopStrings(
                params.stop_strings, include_in_output=params.include_stop_str_in_output
            )

    def advance(self, output: SequenceOutput) -> CompletionDelta:
        """Take in what one step produced.

        A stop string ends the completion, also where the core would go on: its finish reason is
        then in the delta and not in `output`. Tokens after the stop string are dropped.
        """
        token_ids, logprobs = output.token_ids, output.logprobs
        text = ""
        stop = self._stop
        if stop is not None:
            text, num_used = self._watch(output, stop)
            if stop.matched is not None:
                token_ids = token_ids[:num_used]
                logprobs = None if logprobs is None else logprobs[:num_used]
        elif self._detokenizer is None:
            pass
        elif output.finish_reason is None:
            text = self._detokenizer.push(token_ids)
        else:
            text = self._detokenizer.push(token_ids[: self._num_shown(output)])
            text += self._detokenizer.finish()
        self.num_tokens += len(token_ids)
        self.num_preemptions = output.num_preemptions
        matched = stop.matched if stop is not None else None
        return CompletionDelta(
            index=self.index,
            token_ids=token_ids,
            text=text,
            logprobs=None if logprobs is None else positions(logprobs, self._pieces),
            finish_reason=output.finish_reason if matched is None else FinishReason.STOP,
            stop_reason=output.stop_token_id if matched is None else matched,
        )

    def _watch(self, output: SequenceOutput, stop: StopStrings) -> tuple[str, int]:
        """Return the new text, and how many tokens it took when a stop string was completed."""
        assert self._detokenizer is not None, "stop strings need text"
        text = ""
        shown = output.token_ids[: self._num_shown(output)]
        # Token by token, so that the one that completes a stop string is known.
        for num_used, token_id in enumerate(shown, 1):
            may_stop = self.num_tokens + num_used > self._min_tokens
            text += stop.push(self._detokenizer.push((token_id,)), may_stop=may_stop)
            if stop.matched is not None:
                return text, num_used
        if output.finish_reason is not None:
            text += stop.push(self._detokenizer.finish())
            if stop.matched is None:
                text += stop.finish()
        return text, len(output.token_ids)

    def _num_shown(self, output: SequenceOutput) -> int:
        """Return how many of the new tokens are text: a token that stopped it is not."""
        num_tokens = len(output.token_ids)
        if output.finish_reason == FinishReason.STOP and not self._shows_stop_token:
            return num_tokens - 1
        return num_tokens


class GatheredCompletion:
    """Everything that the deltas of one completion brought, to be given out at once."""

    __slots__ = ("_last", "_logprobs", "_texts", "_token_ids")

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []
        self._last: CompletionDelta | None = None

    def add(self, delta: CompletionDelta) -> None:
        self._token_ids += delta.token_ids
        if delta.text:
            self._texts.append(delta.text)
        if delta.logprobs is not None:
            self._logprobs += delta.logprobs
        self._last = delta

    def whole(self) -> CompletionDelta:
        """Return all of it as one delta."""
        assert self._last is not None, "a completion ends with a delta"
        return CompletionDelta(
            index=self._last.index,
            token_ids=self._token_ids,
            text="".join(self._texts),
            logprobs=None if self._last.logprobs is None else self._logprobs,
            finish_reason=self._last.finish_reason,
            stop_reason=self._last.stop_reason,
        )


def positions(logprobs: Sequence[TokenLogprobs], pieces: Pieces | None) -> list[PositionLogprobs]:
    """Add to logprobs what their tokens stand for."""
    return [
        PositionLogprobs(
            token_ids=entry.token_ids,
            logprobs=entry.logprobs,
            ranks=entry.ranks,
            tokens=[] if pieces is None else list(map(pieces.__getitem__, entry.token_ids)),
        )
        for entry in logprobs
    ]
