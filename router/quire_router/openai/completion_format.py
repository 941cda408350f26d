"""Text completions as JSON, whole or chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from quire_engine.rpc.engine_pb2 import GenerateResponse, Output, PositionLogprobs
from quire_router.openai.envelope import Envelope, chunk_tail
from quire_router.openai.logprobs import CompletionLogprobs, prompt_logprobs
from quire_router.openai.requests import CompletionRequest
from quire_router.openai.results import Candidate, Result, Usage, finish_reason, stop_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionPrompt:
    """One prompt of a request."""

    token_ids: Sequence[int]
    text: str = ""
    """For echo only."""
    first_token: str = ""
    """Text of the first token; for echo with logprobs only."""


class CompletionFormat:
    """Turns the results of one completion request into its response.

    Choice i * n + j is the j-th completion of prompt i.
    """

    def __init__(
        self,
        request: CompletionRequest,
        envelope: Envelope,
        prompts: list[CompletionPrompt],
        *,
        as_ids: bool,
    ) -> None:
        """`as_ids` writes tokens in logprobs as token_id:N."""
        self.request = request
        self.envelope = envelope
        self.prompts = prompts
        self._as_ids = as_ids

    def whole(self, results: list[Result], usage: Usage) -> bytes:
        """Return the response body."""
        body = self.envelope.body("text_completion")
        body["choices"] = [
            self._choice(index * self.request.n + number, index, result, item)
            for index, result in enumerate(results)
            for number, item in enumerate(result.best(self.request.n))
        ]
        body["usage"] = usage.render()
        return orjson.dumps(body)

    def logprobs(self) -> CompletionLogprobs | None:
        """Return the logprobs of one choice, if the client wants them."""
        if self.request.logprobs is None:
            return None
        return CompletionLogprobs(self.request.logprobs, as_ids=self._as_ids)

    def _choice(self, number: int, index: int, result: Result, item: Candidate) -> dict[str, Any]:
        request, prompt = self.request, self.prompts[index]
        text = prompt.text + item.text if request.echo else item.text
        choice: dict[str, Any] = {
            "index": number,
            "text": text,
            "logprobs": self._whole_logprobs(prompt, result, item),
            "finish_reason": item.finish_reason,
            "stop_reason": item.stop_reason,
        }
        if request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, as_ids=self._as_ids)
        if request.return_token_ids:
            choice["prompt_token_ids"] = list(prompt.token_ids)
            choice["token_ids"] = item.token_ids
        return choice

    def _whole_logprobs(
        self, prompt: CompletionPrompt, result: Result, item: Candidate
    ) -> dict[str, Any] | None:
        logprobs = self.logprobs()
        if logprobs is None:
            return None
        if not self.request.echo:
            return logprobs.render(item.logprobs)
        positions = [*result.prompt_logprobs, *item.logprobs]
        return logprobs.render(positions, first_token=prompt.first_token)

    def stream(self) -> "CompletionStream":
        """Return the formatter of the response's chunks."""
        return CompletionStream(self)


class CompletionStream:
    """Formats the chunks of one streamed completion request."""

    def __init__(self, format_: CompletionFormat) -> None:
        self._format = format_
        self._request = format_.request
        self._n = format_.request.n
        self._logprobs = [format_.logprobs() for _ in range(len(format_.prompts) * self._n)]
        self._head = format_.envelope.chunk_head("text_completion")
        self._is_plain = self._request.logprobs is None and not self._request.return_token_ids

    def chunks(self, prompt_index: int, response: GenerateResponse, tail: bytes) -> bytes:
        """Return the chunks of what is new; nothing when there is nothing to show."""
        chunks = []
        if response.HasField("prompt") and (self._request.echo or self._request.return_token_ids):
            chunks += self._prompt_chunks(prompt_index, response, tail)
        for output in response.outputs:
            number = prompt_index * self._n + output.index
            reason = finish_reason(output)
            if output.text or reason or (output.token_ids and not self._is_plain):
                chunks.append(self._delta(number, output, reason, tail))
        return b"".join(chunks)

    def _prompt_chunks(
        self, prompt_index: int, response: GenerateResponse, tail: bytes
    ) -> list[bytes]:
        """Return one chunk per choice with the prompt's text, ids and logprobs, as wanted."""
        prompt = self._format.prompts[prompt_index]
        extra = b""
        if self._request.return_token_ids:
            extra = b',"prompt_token_ids":' + orjson.dumps(list(prompt.token_ids))
        text = orjson.dumps(prompt.text if self._request.echo else "")
        chunks = []
        for number in range(prompt_index * self._n, (prompt_index + 1) * self._n):
            logprobs = b"null"
            if self._request.echo:
                positions = response.prompt.prompt_logprobs
                logprobs = self._rendered(number, positions, prompt.first_token)
            chunks.append(self._chunk(number, text, logprobs, b'"finish_reason":null', extra, tail))
        return chunks

    def _delta(self, number: int, output: Output, reason: str | None, tail: bytes) -> bytes:
        finish = b'"finish_reason":null'
        if reason:
            stop = orjson.dumps(stop_reason(output))
            finish = b'"finish_reason":%b,"stop_reason":%b' % (orjson.dumps(reason), stop)
        extra = b""
        if self._request.return_token_ids:
            extra = b',"token_ids":' + orjson.dumps(list(output.token_ids))
        logprobs = self._rendered(number, output.logprobs, None)
        return self._chunk(number, orjson.dumps(output.text), logprobs, finish, extra, tail)

    def _rendered(
        self, number: int, positions: Sequence[PositionLogprobs], first_token: str | None
    ) -> bytes:
        logprobs = self._logprobs[number]
        if logprobs is None or (first_token is None and not positions):
            return b"null"
        return orjson.dumps(logprobs.render(positions, first_token=first_token))

    def _chunk(
        self, number: int, text: bytes, logprobs: bytes, finish: bytes, extra: bytes, tail: bytes
    ) -> bytes:
        return b'%b%d,"text":%b,"logprobs":%b,%b%b}]%b' % (
            self._head,
            number,
            text,
            logprobs,
            finish,
            extra,
            tail,
        )

    def closing(self, usage: Usage) -> bytes:
        """Return the chunk after the last choice's end that carries the usage alone."""
        return self._head[: -len(b'{"index":')] + b"]" + chunk_tail(usage)
