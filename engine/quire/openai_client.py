"""A small streaming client of OpenAI's API, for the terminal chat and the benchmark."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple, Self

import aiohttp

CONNECT_TIMEOUT_S = 10.0
MAX_REASON_LEN = 200
_DONE = "[DONE]"


class ServerError(Exception):
    """The server cannot be reached, or refused the request; the message says which."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        """`status` is that of the answer; 0: there was none."""
        super().__init__(message)
        self.status = status


class ServerEvent(NamedTuple):
    """One server-sent event."""

    name: str
    """Empty where the server gave none."""
    data: str


class EventDecoder:
    """Cuts a stream into server-sent events, wherever the pieces end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Return the events that `piece` completes; those without data are left out."""
        *events, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        return [decoded for event in events if (decoded := _decoded(event)).data]


class OpenAIClient:
    """Requests to one server; an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        headers: Mapping[str, str] | None = None,
        max_connections: int = 0,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = dict(headers or {})
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self._max_connections),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None, "entered before it is left"
        await self._session.close()

    async def models(self) -> list[str]:
        """Return the names of the models served."""
        answer = await self._json("GET", "/v1/models")
        return [str(model["id"]) for model in answer["data"]]

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON answer to a request that does not stream."""
        return await self._json("POST", path, body)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer as they arrive.

        Raises:
            ServerError: nothing listens, the request was refused, or the stream broke off.
        """
        async with aclosing(self._events("POST", path, body)) as events:
            async for event in events:
                if event.data == _DONE:
                    return
                yield _chunk(event.data)
        raise ServerError("the answer broke off before its end")

    async def get(self, path: str) -> bytes:
        """Return the body of the answer to a GET."""
        try:
            async with self._open.get(self.url + path) as response:
                await self._check(response)
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def follow(self, path: str) -> AsyncGenerator[ServerEvent, None]:
        """Yield the server-sent events of a path until the server ends them.

        Raises:
            ServerError: nothing listens, the request was refused, or the stream broke off.
        """
        async with aclosing(self._events("GET", path)) as events:
            async for event in events:
                yield event

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use `async with OpenAIClient(...)`")
        return self._session

    async def _events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[ServerEvent, None]:
        decoder = EventDecoder()
        try:
            async with self._open.request(method, self.url + path, json=body) as response:
                await self._check(response)
                async for piece in response.content.iter_any():
                    for event in decoder.feed(piece):
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            async with self._open.request(method, self.url + path, json=body) as response:
                await self._check(response)
                return dict(await response.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise ServerError(f"{self.url}{path} did not answer with JSON") from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status >= 400:
            text = await response.text()
            reason = error_message(text) or response.reason
            raise ServerError(f"{response.status}: {reason}", status=response.status)

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return ServerError(f"{self.url}: there is no host {error.host}")
        if isinstance(error, aiohttp.ClientSSLError):
            return ServerError(f"{self.url} does not speak TLS as it should: {error.os_error}")
        if isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
            return ServerError(f"nothing listens at {self.url} (`quire serve` starts a server)")
        reason = " ".join(str(error).split())[:MAX_REASON_LEN]
        return ServerError(f"the connection to {self.url} broke: {reason}")


def error_message(text: str) -> str:
    """Return the message of an OpenAI error body, or the start of any other text."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:MAX_REASON_LEN]


def _decoded(event: bytes) -> ServerEvent:
    lines = event.decode(errors="replace").split("\n")
    return ServerEvent(name="".join(_field(lines, "event")), data="\n".join(_field(lines, "data")))


def _field(lines: Iterable[str], name: str) -> Iterator[str]:
    start = f"{name}:"
    return (line[len(start) :].removeprefix(" ") for line in lines if line.startswith(start))


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise ServerError(f"an event is not JSON: {data[:MAX_REASON_LEN]}") from None
    if "error" in chunk:
        raise ServerError(error_message(data))
    return dict(chunk)
