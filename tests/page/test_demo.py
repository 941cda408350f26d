"""What a newcomer sees after `make serve`: a real model, and the pictures in the README."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page, expect

from page_support import ask, ended, open_page, set_field
from serve_process import Served, start_serve

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

QUESTIONS = (
    "Name three rivers.",
    "What is a prime number?",
    "Write a haiku about rain.",
    "How do bees make honey?",
    "Who wrote Hamlet?",
    "Explain what a compiler does.",
)
SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer briefly and clearly."}


@pytest.fixture(scope="module")
def served(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two replicas of the demo model behind the router."""
    served = start_serve(tmp_path_factory.mktemp("serve") / "serve.log", "--replicas", "2")
    yield served
    served.stop()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures go: QUIRE_SCREENSHOTS, or nowhere in particular."""
    folder = Path(os.environ.get("QUIRE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def others_ask(served: Served) -> None:
    """Other clients chat at the same time."""

    async def one(session: aiohttp.ClientSession, question: str) -> None:
        messages: list[Any] = [SYSTEM, {"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": 48}
        async with session.post(f"{served.api_url}/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()

    async with aiohttp.ClientSession() as session:
        for start in (0, 3):
            await asyncio.gather(*(one(session, text) for text in QUESTIONS[start : start + 3]))


async def test_the_first_answer_streams_in(page: Page, served: Served, pictures: Path) -> None:
    await open_page(page, served.url)
    await expect(page.locator("#totals")).to_contain_text("2 of 2 replicas ready")
    await set_field(page, "Temperature", "0")
    await set_field(page, "Max tokens", "64")
    await page.locator("summary", has_text="Settings").click()

    answer = await ask(page, "What is the capital of France?")
    await expect(answer.locator(".text")).not_to_be_empty()
    assert "Paris" in await ended(answer)
    await others_ask(served)
    await ended(await ask(page, "And of Italy?"))

    await expect(page.locator(".request")).to_have_count(8)
    await page.set_viewport_size({"width": 1280, "height": 900})
    await page.locator(".request summary").first.click()
    await page.screenshot(path=pictures / "page.png")
    await page.emulate_media(color_scheme="dark")
    await page.screenshot(path=pictures / "page-dark.png")
    await page.set_viewport_size({"width": 360, "height": 720})
    await page.get_by_role("button", name="Replicas").click()
    await page.screenshot(path=pictures / "page-phone.png")
