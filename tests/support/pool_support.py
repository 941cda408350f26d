"""What the tests of the router's pool share: requests, readers, patience."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from quire_engine.rpc import engine_pb2 as pb
from quire_router.dispatcher import PoolDispatcher
from quire_router.errors import ApiError
from quire_router.generation import Generation
from quire_router.pool_config import PoolConfig
from quire_router.stream import GenerationStream

PATIENCE_S = 60.0
"""Longer than anything takes on a machine that is busy with other things."""


def ask(prompt: list[int], max_tokens: int = 4, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return pb.GenerateRequest(prompt_token_ids=prompt, sampling=sampling, **fields)


def start(
    dispatcher: PoolDispatcher, prompt: list[int], max_tokens: int = 4, **fields: Any
) -> GenerationStream:
    return dispatcher.generate(ask(prompt, max_tokens, **fields), token_ids=prompt)


async def begin(generation: Generation) -> int:
    """Wait for the first of an answer; return how many tokens came."""
    response = await generation.next()
    return sum(len(output.token_ids) for output in response.outputs)


async def read(generation: Generation) -> list[int]:
    """Return the token ids of a generation's first completion."""
    token_ids: list[int] = []
    while True:
        response = await generation.next()
        for output in response.outputs:
            token_ids.extend(output.token_ids)
        if response.HasField("usage"):
            return token_ids


async def outcome(generation: Generation) -> list[int] | ApiError:
    """Return the token ids, or what it failed with."""
    try:
        return await read(generation)
    except ApiError as error:
        return error


async def outcomes(generations: Iterable[Generation]) -> list[list[int] | ApiError]:
    return list(await asyncio.gather(*map(outcome, generations)))


async def lengths(generations: Iterable[Generation]) -> list[int]:
    """Return how many tokens each has yet to give; none may fail."""
    return [len(token_ids) for token_ids in await asyncio.gather(*map(read, generations))]


async def eventually(is_true: Callable[[], Any], *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def dispatching(
    *targets: str, ready: int | None = None, **options: Any
) -> AsyncIterator[PoolDispatcher]:
    """Run a dispatcher over targets; waits until so many (default: all) are ready."""
    registry = CollectorRegistry()
    config = PoolConfig(replicas=targets, **({"replica_wait_s": PATIENCE_S} | options))
    dispatcher = PoolDispatcher(config, registry)
    await dispatcher.start()
    num_ready = len(targets) if ready is None else ready
    try:
        await eventually(lambda: num_up(registry) >= num_ready)
        yield dispatcher
    finally:
        await dispatcher.close()


def num_up(registry: CollectorRegistry) -> int:
    family = next(m for m in registry.collect() if m.name == "quire_router_replica_up")
    return int(sum(sample.value for sample in family.samples))
