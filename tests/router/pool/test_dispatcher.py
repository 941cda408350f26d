import asyncio

from pool_support import dispatching, read, start
from quire_engine.testing import FakeEngine

PROMPT = list(range(1, 50))


async def test_a_generation_yields_tokens_until_usage() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        generation = start(dispatcher, PROMPT, max_tokens=7)

        token_ids = await read(generation)

        assert len(token_ids) == 7
        assert generation.replica == engine.address


async def test_many_generations_share_one_stream_and_do_not_mix() -> None:
    async with FakeEngine() as engine, dispatching(engine.address) as dispatcher:
        prompts = [[number, *PROMPT] for number in range(1, 41)]
        alone = [await read(start(dispatcher, prompt)) for prompt in prompts]

        together = await asyncio.gather(*(read(start(dispatcher, p)) for p in prompts))

        assert together == alone
