"""Where a request's outputs go: a Session carries many requests, a Generate call one.

Outputs are gathered while a step is taken in and sent as one message when it is over. What a client
has not read yet is bounded; beyond the bound its requests are aborted and its stream ends.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Iterable

from quire_engine.errors import InvalidRequestError, QuireError
from quire_engine.frontend.deltas import RequestDelta
from quire_engine.rpc import engine_pb2 as pb
from quire_engine.server.async_engine import AsyncEngine, Sink
from quire_engine.server.convert import fill_response, sampling_params
from quire_engine.server.origin import Origin
from quire_engine.server.outbox import Outbox
from quire_engine.server.status import error_message

logger = logging.getLogger(__name__)


async def submit(engine: AsyncEngine, message: pb.GenerateRequest, sink: Sink) -> str:
    """Begin what a message asks for and return its request id.

    Raises:
        QuireError: the request is refused.
    """
    request_id = message.request_id or uuid.uuid4().hex
    origin = Origin.of(message)
    try:
        params = sampling_params(
            message.sampling, engine.default_params, final_only=message.final_only
        )
        prompt = list(message.prompt_token_ids) or await engine.tokenize(message.prompt)
        engine.submit(
            request_id,
            prompt,
            params,
            sink,
            priority=message.priority,
            cache_salt=message.cache_salt,
            origin=origin,
        )
    except QuireError as error:
        engine.refuse(error, origin)
        raise
    return request_id


class Session:
    """One router's stream: its requests by alias, and the messages that it has yet to read."""

    def __init__(self, engine: AsyncEngine, *, max_buffered: int) -> None:
        self._engine = engine
        self._outbox: Outbox[pb.SessionResponse] = Outbox(max_buffered)
        self._aliases: dict[str, int] = {}
        self._texts: set[int] = set()
        """Aliases whose prompt was text and is not answered yet."""
        self._request_ids: dict[int, str] = {}
        self._step = pb.SessionResponse()
        self._is_half_closed = False

    def responses(self) -> AsyncIterator[pb.SessionResponse]:
        """Yield one message per step until there can be no more.

        Raises:
            ReaderTooSlowError: outputs were dropped because nobody read them.
            InvalidRequestError: the router used an alias twice.
        """
        return self._outbox.messages()

    async def read(self, requests: AsyncIterator[pb.SessionRequest]) -> None:
        """Take in what the router sends, until it sends no more; what is in flight then finishes.

        A stream that breaks is another matter: its handler calls `close`.
        """
        try:
            async for message in requests:
                if message.HasField("add"):
                    await self._add(message.add)
                else:
                    self._abort(message.abort.aliases)
        except InvalidRequestError as error:
            self._outbox.end(error)
        except Exception as error:  # a task of its own: nobody else would see it
            if not self._outbox.is_ended:  # otherwise it is the stream that was ended meanwhile
                logger.exception("session broken num_requests=%d", len(self._request_ids))
            self._outbox.end(error)
        self._is_half_closed = True
        self._end_if_done()

    def end(self, error: QuireError | None) -> None:
        """Let the stream end, with this error, once the router has read what there is."""
        self._outbox.end(error)

    def close(self) -> None:
        """Abort every request that is still in flight."""
        self._abort(list(self._request_ids))
        self._outbox.end()

    def deliver(self, delta: RequestDelta) -> None:
        alias = self._aliases.get(delta.request_id)
        if alias is None:
            return
        item = self._step.items.add(alias=alias)
        if delta.error is not None:
            item.error.CopyFrom(error_message(delta.error))
        else:
            fill_response(item.response, delta, tells_prompt=alias in self._texts)
        if delta.finished:
            self._forget(alias)

    def flush(self, load: pb.Load) -> None:
        step, self._step = self._step, pb.SessionResponse()
        if not step.items:
            return
        step.load.CopyFrom(load)
        self._outbox.put(step, len(step.items))
        if self._outbox.is_ended:  # overflowed: nobody will hear of these requests any more
            self._abort(list(self._request_ids))
        self._end_if_done()

    async def _add(self, add: pb.SessionRequest.Add) -> None:
        if add.alias in self._request_ids:
            raise InvalidRequestError(f"alias {add.alias} names a request that has not ended")
        if self._outbox.is_ended:
            return
        try:
            await self._begin(add)
        except QuireError as error:
            self._refuse(add.alias, error)

    async def _begin(self, add: pb.SessionRequest.Add) -> None:
        request_id = await submit(self._engine, add.request, self)
        self._aliases[request_id] = add.alias
        self._request_ids[add.alias] = request_id
        if not add.request.prompt_token_ids:
            self._texts.add(add.alias)

    def _refuse(self, alias: int, error: QuireError) -> None:
        response = pb.SessionResponse(load=self._engine.load())
        response.items.add(alias=alias, error=error_message(error))
        self._outbox.put(response, 1)

    def _abort(self, aliases: Iterable[int]) -> None:
        known = [alias for alias in aliases if alias in self._request_ids]
        self._engine.abort([self._forget(alias) for alias in known])
        self._end_if_done()

    def _forget(self, alias: int) -> str:
        request_id = self._request_ids.pop(alias)
        self._texts.discard(alias)
        del self._aliases[request_id]
        return request_id

    def _end_if_done(self) -> None:
        if self._is_half_closed and not self._request_ids:
            self._outbox.end()


class GenerateCall:
    """One request with a stream of its own."""

    def __init__(self, engine: AsyncEngine, *, max_buffered: int) -> None:
        self._engine = engine
        self._outbox: Outbox[pb.GenerateResponse] = Outbox(max_buffered)
        self._request_id = ""
        self._is_text = False

    async def begin(self, message: pb.GenerateRequest) -> None:
        """Submit the request; raises what `submit` raises."""
        self._is_text = not message.prompt_token_ids
        self._request_id = await submit(self._engine, message, self)

    def responses(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yield what each step brought; raise the error that the request ended with."""
        return self._outbox.messages()

    def close(self) -> None:
        """Abort the request if it is still in flight."""
        self._engine.abort([self._request_id])
        self._outbox.end()

    def deliver(self, delta: RequestDelta) -> None:
        if delta.error is not None:
            self._outbox.end(delta.error)
            return
        response = pb.GenerateResponse()
        fill_response(response, delta, tells_prompt=self._is_text)
        self._outbox.put(response, 1)
        if delta.finished:
            self._outbox.end()

    def flush(self, load: pb.Load) -> None:
        if self._outbox.is_ended:  # after an overflow nobody will hear of this request any more
            self._engine.abort([self._request_id])
