"""What the tests of the server share: a client's stub and the usual requests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.rpc.engine_pb2_grpc import EngineStub

DEADLINE_S = 60.0


@asynccontextmanager
async def stub_of(address: str, **options: int) -> AsyncIterator[Any]:
    settings = [(f"grpc.{name}", value) for name, value in options.items()]
    async with grpc.aio.insecure_channel(address, options=settings) as channel:
        yield EngineStub(channel)  # type: ignore[no-untyped-call]  # generated


def generate(
    prompt: str | list[int] = "Hello, fake engine", *, request_id: str = "", **sampling: Any
) -> pb.GenerateRequest:
    request = pb.GenerateRequest(
        request_id=request_id,
        sampling=pb.SamplingParams(**{"max_tokens": 4, "temperature": 0.0} | sampling),
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids.extend(prompt)
    return request


def add(alias: int, request: pb.GenerateRequest) -> pb.SessionRequest:
    return pb.SessionRequest(add=pb.SessionRequest.Add(alias=alias, request=request))


def abort(*aliases: int) -> pb.SessionRequest:
    return pb.SessionRequest(abort=pb.SessionRequest.Abort(aliases=aliases))


async def read_all(call: Any) -> list[Any]:
    """Read a stream to its end; unlike iteration this may follow a `read`."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def items_of(session: Any) -> list[pb.SessionResponse.Item]:
    """Read a session to its end."""
    return [item for message in await read_all(session) for item in message.items]


async def collect(responses: Any) -> tuple[str, list[pb.GenerateResponse]]:
    """Read one request to its end: its text, and every response."""
    gathered: list[pb.GenerateResponse] = await read_all(responses)
    text = "".join(output.text for response in gathered for output in response.outputs)
    return text, gathered


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's
            await asyncio.sleep(0.005)
