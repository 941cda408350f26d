"""Many clients at once, half of which change their minds."""

import asyncio
import random
from typing import Any

from http_support import Served, serve_engine, until
from quire_engine.testing import FakeEngine, FakeModel

NUM_CLIENTS = 150


async def ask(served: Served, number: int, patience_s: float | None) -> str:
    """Return "done" or "left"; whatever else happens is an error."""
    path = "/v1/chat/completions" if number % 2 else "/v1/completions"
    body: dict[str, Any] = {"max_tokens": 5 + number % 20, "ignore_eos": True, "temperature": 0}
    body |= {"messages": [{"role": "user", "content": f"{number} " * 20}]}
    body |= {"prompt": [f"{number} " * 20] * (1 + number % 3), "stream": number % 3 > 0}
    try:
        async with asyncio.timeout(patience_s):
            async with served.http.post(served.url + path, json=body) as response:
                text = await response.text()
    except TimeoutError:
        return "left"
    assert response.status == 200, text
    assert "error" not in text
    return "done"


async def test_nothing_is_left_behind_when_clients_come_and_go() -> None:
    generator = random.Random(0)
    async with (
        FakeEngine(FakeModel(decode_ms=2)) as engine,
        serve_engine(engine.address) as served,
    ):
        await until(lambda: served.app.is_ready)
        patience = [
            None if number % 2 else generator.uniform(0.0, 0.3) for number in range(NUM_CLIENTS)
        ]

        ends = await asyncio.gather(
            *(ask(served, number, seconds) for number, seconds in enumerate(patience))
        )

        assert [end for end, seconds in zip(ends, patience, strict=True) if seconds is None] == [
            "done"
        ] * (NUM_CLIENTS // 2)
        await until(lambda: engine.num_in_flight == 0)
        await until(lambda: engine.num_used_blocks == 0)
        await until(lambda: "quire_router_requests_in_flight 0.0" in served.metrics())
