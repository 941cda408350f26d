"""A real Chromium, driven by Playwright: one per module of tests, a fresh profile per test."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from page_support import SLOW_MS

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is not None:
        return found
    reason = "needs Chromium: run `make browser` once (root, Debian)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have a browser; it {reason}")
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    # Chromium's own sandbox refuses to run as root, as containers do.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        arguments = [*sandbox, "--disable-gpu", "--disable-dev-shm-usage"]
        running = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty tab, which fails its test on whatever the page itself got wrong."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
    context.set_default_timeout(SLOW_MS)
    page = await context.new_page()
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on(
        "console",
        lambda message: (
            mistakes.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    yield page
    await context.close()
    assert mistakes == []
