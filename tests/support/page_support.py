"""What people do on the router's page, for tests that do it in a browser."""

from playwright.async_api import Locator, Page, expect

SLOW_MS = 60_000
"""How long a busy machine may take for what a page does at once."""
expect.set_options(timeout=SLOW_MS)


async def open_page(page: Page, url: str) -> None:
    """Open the page and wait until it follows the replicas."""
    await page.goto(url)
    await expect(page.locator("#connection")).to_have_text("Live")


async def ask(page: Page, question: str) -> Locator:
    """Send a message; return the place of its answer."""
    await page.get_by_label("Your message").fill(question)
    await page.keyboard.press("Enter")
    return page.locator(".message.assistant").last


async def ended(answer: Locator, state: str = "done") -> str:
    """Wait for an answer to end in a state; return its text."""
    await expect(answer).to_have_attribute("data-state", state)
    return await text_of(answer)


async def text_of(answer: Locator) -> str:
    return await answer.locator(".text").inner_text()


async def set_field(page: Page, label: str, value: str) -> None:
    """Fill a field of the settings."""
    field = page.get_by_label(label)
    if not await field.is_visible():
        await page.locator("summary", has_text="Settings").click()
    await field.fill(value)
