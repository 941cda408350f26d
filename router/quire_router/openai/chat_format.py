"""Chat completions as JSON, whole or chunk by chunk.

A chunk is bytes around one JSON string: everything else is the same for a whole stream and is
joined once.
"""

from typing import Any

import orjson

from quire_engine.rpc.engine_pb2 import GenerateResponse, Output
from quire_router.openai.envelope import Envelope, chunk_tail
from quire_router.openai.logprobs import chat_logprobs, prompt_logprobs
from quire_router.openai.requests import ChatRequest
from quire_router.openai.results import Candidate, Result, Usage, finish_reason, stop_reason


class ChatFormat:
    """Turns the results of one chat request into its response."""

    def __init__(
        self,
        request: ChatRequest,
        envelope: Envelope,
        *,
        role: str,
        token_ids: list[int],
        as_ids: bool,
    ) -> None:
        """`token_ids` are the prompt's; `as_ids` writes tokens in logprobs as token_id:N."""
        self._request = request
        self._envelope = envelope
        self._role = role
        self._prompt_token_ids = token_ids
        self._as_ids = as_ids
        self._echo = _last_content(request, role) if request.echo else ""

    def whole(self, results: list[Result], usage: Usage) -> bytes:
        """Return the response body."""
        result = results[0]
        body = self._envelope.body("chat.completion")
        body["choices"] = [
            self._choice(index, item) for index, item in enumerate(result.candidates)
        ]
        body["usage"] = usage.render()
        if self._request.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, as_ids=self._as_ids)
        if self._request.return_token_ids:
            body["prompt_token_ids"] = self._prompt_token_ids
        return orjson.dumps(body)

    def _choice(self, index: int, item: Candidate) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": self._role,
            "content": self._echo + item.text,
            "refusal": None,
            "tool_calls": [],
        }
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(item.logprobs),
            "finish_reason": item.finish_reason,
            "stop_reason": item.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = item.token_ids
        return choice

    def _logprobs(self, positions: Any) -> dict[str, Any] | None:
        num_top = self._request.num_logprobs
        return None if num_top is None else chat_logprobs(positions, num_top, as_ids=self._as_ids)

    def stream(self) -> "ChatStream":
        """Return the formatter of the response's chunks."""
        return ChatStream(self, self._request, self._envelope)

    def opening(self) -> bytes:
        """Return the first delta of every choice, as JSON."""
        return orjson.dumps({"role": self._role, "content": self._echo})

    def opening_extra(self) -> bytes:
        """Return fields of the first chunk that stand beside its choices."""
        if not self._request.return_token_ids:
            return b""
        return b',"prompt_token_ids":' + orjson.dumps(self._prompt_token_ids)

    def delta_extra(self, output: Output) -> bytes:
        """Return what a choice says besides its delta and finish_reason."""
        extra = b',"logprobs":null'
        if self._request.logprobs:
            extra = b',"logprobs":' + orjson.dumps(self._logprobs(output.logprobs))
        if self._request.return_token_ids:
            extra += b',"token_ids":' + orjson.dumps(list(output.token_ids))
        return extra


class ChatStream:
    """Formats the chunks of one streamed chat completion."""

    def __init__(self, format_: ChatFormat, request: ChatRequest, envelope: Envelope) -> None:
        self._format = format_
        self._n = request.n
        self._is_plain = not (request.logprobs or request.return_token_ids)
        self._head = envelope.chunk_head("chat.completion.chunk")
        self._is_open = False
        self._running = b',"logprobs":null,"finish_reason":null}]'

    def chunks(self, _prompt_index: int, response: GenerateResponse, tail: bytes) -> bytes:
        """Return the chunks of what is new; nothing when there is nothing to show."""
        chunks = []
        if not self._is_open:
            self._is_open = True
            chunks += self._openings(tail)
        for output in response.outputs:
            head = b"%b%d" % (self._head, output.index)
            if output.text and self._is_plain:
                text = orjson.dumps(output.text)
                chunks.append(b'%b,"delta":{"content":%b}%b%b' % (head, text, self._running, tail))
            elif output.text or (output.token_ids and not self._is_plain):
                chunks.append(self._detailed(head, output, tail))
            reason = finish_reason(output)
            if reason:
                chunks.append(_ending(head, reason, output, tail))
        return b"".join(chunks)

    def _openings(self, tail: bytes) -> list[bytes]:
        delta = self._format.opening()
        after = b"]" + self._format.opening_extra() + tail
        return [
            b'%b%d,"delta":%b,"logprobs":null,"finish_reason":null}%b'
            % (self._head, index, delta, after)
            for index in range(self._n)
        ]

    def _detailed(self, head: bytes, output: Output, tail: bytes) -> bytes:
        text, extra = orjson.dumps(output.text), self._format.delta_extra(output)
        return b'%b,"delta":{"content":%b}%b,"finish_reason":null}]%b' % (head, text, extra, tail)

    def closing(self, usage: Usage) -> bytes:
        """Return the chunk after the last choice's end that carries the usage alone."""
        return self._head[: -len(b'{"index":')] + b"]" + chunk_tail(usage)


def _ending(head: bytes, reason: str, output: Output, tail: bytes) -> bytes:
    return b'%b,"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}]%b' % (
        head,
        orjson.dumps(reason),
        orjson.dumps(stop_reason(output)),
        tail,
    )


def _last_content(request: ChatRequest, role: str) -> str:
    """Return the text of the last message, if the answer goes on in the same role."""
    last = request.messages[-1]
    content = last.get("content")
    return content if last["role"] == role and isinstance(content, str) else ""
