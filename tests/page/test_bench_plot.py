"""The page of `quire bench serve --plot` in a browser: it shows itself and asks for nothing."""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from quire.bench.plot.page import page as plot_page
from quire.bench.request import BenchResult
from quire.bench.statistics import summarize

pytestmark = pytest.mark.asyncio(loop_scope="module")


def results() -> list[BenchResult]:
    made = []
    for number in range(60):
        one = BenchResult(prompt_len=32, start_time=number / 10, success=True, output_len=20)
        for token in range(20):
            gap = 0.05 + number % 7 / 100 if token == 0 else 0.01 + number % 3 / 1000
            one.arrive(one.start_time + one.latency + gap, "x")
        made.append(one)
    return [*made, BenchResult(prompt_len=1, start_time=2.0, error="<img src=x> refused")]


@pytest.fixture
def url(tmp_path: Path) -> str:
    measured = results()
    html = plot_page(summarize(measured, 6.3), measured, settings={"Model": "test/model"})
    path = tmp_path / "out.html"
    path.write_text(html)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
async def test_it_opens_without_a_request_or_a_mistake(
    page: Page, url: str, scheme: str, width: int
) -> None:
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await page.set_viewport_size({"width": width, "height": 800})

    await page.goto(url)

    await expect(page.get_by_role("heading", name="test/model")).to_be_visible()
    await expect(page.get_by_role("img")).to_have_count(6)
    await expect(page.locator("svg rect.bar").first).to_be_visible()
    await expect(page.locator("li")).to_have_text("<img src=x> refused")
    assert await page.locator("html").evaluate("node => node.scrollWidth") <= width
    assert (requests, messages) == ([url], [])


async def test_the_colours_follow_the_browser(page: Page, url: str) -> None:
    colours = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        await page.goto(url)
        colours.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert colours == ["rgb(255, 255, 255)", "rgb(16, 19, 23)"]


async def test_numbers_are_in_a_table_for_those_who_see_no_plots(page: Page, url: str) -> None:
    await page.goto(url)

    row = page.get_by_role("row", name="Time to first token")

    await expect(row.get_by_role("cell")).to_have_text(
        ["79", "80", "110", "110", "110", "110", "60 requests"]
    )
