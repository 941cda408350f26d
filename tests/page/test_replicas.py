"""The replicas, live in a browser, in front of real processes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from page_support import SLOW_MS, ask, ended, open_page, set_field
from serving_processes import Server, engine, router

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A router and its two engines."""

    router: Server
    first: Server
    second: Server


@pytest_asyncio.fixture(loop_scope="module")
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with (
        engine(tmp_path / "one.sock") as first,
        engine(tmp_path / "two.sock") as second,
        router(first.address, second.address) as front,
    ):
        yield Deployment(router=front, first=first, second=second)


def card(page: Page, server: Server) -> Locator:
    return page.locator(f'.replica[data-replica="{server.address}"]')


async def open_ready(page: Page, deployment: Deployment) -> None:
    await open_page(page, deployment.router.url)
    await expect(page.locator("#totals")).to_contain_text("2 of 2 replicas ready")
    await expect(page.locator("#model")).to_have_text("fake")
    await set_field(page, "Max tokens", "20")


async def width_of(page: Page, selector: str) -> float:
    box = await page.locator(selector).bounding_box()
    assert box is not None, f"{selector} is not shown"
    return box["x"] + box["width"]


async def test_a_request_is_shown_with_where_it_went_and_why(
    page: Page, deployment: Deployment
) -> None:
    await open_ready(page, deployment)
    await ended(await ask(page, "Tell me something long enough to be cached."))
    await ended(await ask(page, "And more."))

    requests = page.locator(".request")

    await expect(requests).to_have_count(2)
    await expect(requests.last).to_contain_text("done")
    await expect(requests.last).to_contain_text("as good as others: its turn")
    await expect(requests.first).to_contain_text("20 tokens")
    await requests.first.locator("summary").click()
    await expect(requests.first.locator("tbody tr")).to_have_count(2)
    await expect(requests.first.locator("tr.chosen")).to_have_count(1)


async def test_a_killed_replica_is_seen_and_the_chat_goes_on(
    page: Page, deployment: Deployment
) -> None:
    await open_ready(page, deployment)

    deployment.first.process.kill()

    await expect(card(page, deployment.first)).to_contain_text("not connected")
    await expect(page.locator("#totals")).to_contain_text("1 of 2 replicas ready")
    await ended(await ask(page, "Still there?"))
    await expect(page.locator(".request").first).to_contain_text(deployment.second.address)
    await expect(page.locator(".request").first).to_contain_text("the only replica")


async def test_an_answer_whose_replica_dies_says_so(page: Page, deployment: Deployment) -> None:
    await open_ready(page, deployment)
    await set_field(page, "Max tokens", "8000")
    answer = await ask(page, "Tell me a long story.")
    await expect(answer.locator(".text")).not_to_be_empty()

    deployment.first.process.kill()
    deployment.second.process.kill()

    await ended(answer, "failed")
    await expect(answer.get_by_role("alert")).to_contain_text("went away")
    await expect(page.locator(".request").first).to_contain_text("the replica was lost")


async def test_the_page_comes_back_with_its_router(page: Page, deployment: Deployment) -> None:
    await open_ready(page, deployment)

    deployment.router.terminate()
    await expect(page.locator("#connection")).to_have_text("Reconnecting")
    await expect(page.locator("#replicas")).to_have_attribute("data-stale", "")
    port = int(deployment.router.address.rpartition(":")[2])
    assert await deployment.router.status() == 0

    async with router(deployment.second.address, port=port):
        await expect(page.locator("#connection")).to_have_text("Live", timeout=2 * SLOW_MS)
        await expect(page.locator("#totals")).to_contain_text("1 of 1 replica ready")
        await expect(page.locator(".replica")).to_have_count(1)
        await ended(await ask(page, "Hello again?"))


async def test_a_phone_is_wide_enough(page: Page, deployment: Deployment) -> None:
    await page.set_viewport_size({"width": 320, "height": 640})
    await open_page(page, deployment.router.url)
    await set_field(page, "Max tokens", "40")
    await ended(await ask(page, "w" * 200))
    for selector in ("header", "#ask", "#settings", ".message.user", ".message.assistant"):
        assert await width_of(page, selector) <= 320, selector

    await page.get_by_role("button", name="Replicas").click()

    await expect(page.locator("#chat")).to_be_hidden()
    await page.locator(".request summary").click()
    for selector in ("#replicas", ".request", "#totals"):
        assert await width_of(page, selector) <= 320, selector
    assert await page.locator("html").evaluate("node => node.scrollWidth") <= 320
