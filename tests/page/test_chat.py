"""The chat, in a browser."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Page, Request, expect

from http_support import ScriptedDispatcher, Served, serve, until
from page_support import ask, ended, open_page, set_field, text_of
from quire_router.errors import OverloadedError

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    "<b>bold</b> [click](javascript:alert(1)) &lt;i&gt;\n```html\n<iframe src=/></iframe>\n```\nend"
)


@pytest_asyncio.fixture(loop_scope="module")
async def served() -> AsyncIterator[Served]:
    async with serve(ScriptedDispatcher(answer="Good morning!")) as running:
        yield running


def prompts(served: Served) -> list[str]:
    """Prompts as the engine got them: tokens are bytes, but for special ones."""
    return [
        bytes(item for item in request.prompt_token_ids if item < 256).decode()
        for request in served.script.requests
    ]


async def test_an_answer_comes_with_its_speed(page: Page, served: Served) -> None:
    await open_page(page, served.url)

    answer = await ask(page, "Hello?")

    assert await ended(answer) == "Good morning!"
    figures = answer.locator(".figures-line")
    await expect(figures).to_contain_text("first token")
    await expect(figures).to_contain_text("tok/s")
    await expect(figures).to_contain_text("13 tokens")


async def test_a_stopped_answer_keeps_what_came_and_is_aborted(page: Page, served: Served) -> None:
    served.script.hang_after = 5
    await open_page(page, served.url)

    answer = await ask(page, "Hello?")
    await expect(answer.locator(".text")).to_have_text("Good")
    await page.get_by_role("button", name="Stop").click()

    assert await ended(answer, "stopped") == "Good"
    await until(lambda: served.script.generations[0].was_cancelled)
    await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_escape_stops_and_retry_asks_the_same_again(page: Page, served: Served) -> None:
    served.script.hang_after = 2
    await open_page(page, served.url)
    answer = await ask(page, "Hello?")
    await expect(answer.locator(".text")).to_have_text("G")
    await page.keyboard.press("Escape")
    await ended(answer, "stopped")

    served.script.hang_after = None
    await page.get_by_role("button", name="Retry").click()

    assert await ended(answer) == "Good morning!"
    first, second = prompts(served)
    assert first == second


async def test_markup_in_an_answer_stays_text(page: Page, served: Served) -> None:
    served.script.answer = HOSTILE
    await open_page(page, served.url)

    answer = await ask(page, HOSTILE)

    shown = await ended(answer)
    assert "<img src=x onerror=" in shown
    assert "<b>bold</b> [click](javascript:alert(1)) &lt;i&gt;" in shown
    assert "<iframe src=/></iframe>" in await answer.locator("pre").inner_text()
    assert HOSTILE.split("```")[0].strip() in await page.locator(".user .text").inner_text()
    assert await page.locator("#messages :is(img, script, b, i, a, iframe)").count() == 0
    assert await page.title() == "Quire"


async def test_a_conversation_is_sent_as_a_whole(page: Page, served: Served) -> None:
    await open_page(page, served.url)
    await set_field(page, "System prompt", "Be brief.")
    await ended(await ask(page, "First?"))

    await ended(await ask(page, "Second?"))

    last = prompts(served)[-1]
    places = [last.index(text) for text in ("Be brief.", "First?", "Good morning!", "Second?")]
    assert places == sorted(places)


async def test_settings_are_sent_and_empty_ones_left_to_the_model(
    page: Page, served: Served
) -> None:
    await open_page(page, served.url)
    await set_field(page, "Temperature", "0.3")
    await set_field(page, "Max tokens", "4")
    await set_field(page, "Seed", "7")

    answer = await ask(page, "Hello?")

    assert await ended(answer) == "Good"
    await expect(answer).to_contain_text("ended at the token limit")
    sampling = served.script.requests[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.3, 4, 7)
    assert not sampling.HasField("top_p")


async def test_a_setting_out_of_range_is_not_sent(page: Page, served: Served) -> None:
    await open_page(page, served.url)
    await set_field(page, "Temperature", "9")

    await ask(page, "Hello?")

    await expect(page.get_by_label("Temperature")).to_be_focused()
    await expect(page.get_by_label("Your message")).to_have_value("Hello?")
    assert served.script.requests == []


async def test_a_failure_is_told_and_can_be_tried_again(page: Page, served: Served) -> None:
    served.script.error, served.script.error_after = OverloadedError("every queue is full"), 3
    await open_page(page, served.url)
    answer = await ask(page, "Hello?")
    assert await ended(answer, "failed") == "Go"
    await expect(answer.get_by_role("alert")).to_have_text("every queue is full")

    served.script.error = None
    await page.get_by_role("button", name="Retry").click()

    assert await ended(answer) == "Good morning!"
    await expect(answer.get_by_role("alert")).to_be_hidden()


async def test_a_new_chat_forgets_the_old_one(page: Page, served: Served) -> None:
    await open_page(page, served.url)
    await ended(await ask(page, "First?"))

    await page.get_by_role("button", name="New chat").click()
    await ended(await ask(page, "Second?"))

    assert "First?" not in prompts(served)[-1]
    assert await page.locator(".message").count() == 2


async def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page) -> None:
    async with serve(ScriptedDispatcher(), api_keys=("sesame",)) as served:
        await page.goto(served.url)
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("an API key is required")
        await dialog.get_by_label("Key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("the API key is not valid")

        await dialog.get_by_label("Key").fill("sesame")
        await page.keyboard.press("Enter")

        await expect(page.locator("#connection")).to_have_text("Live")
        assert await ended(await ask(page, "Hello?")) == "Hello!"
        await page.reload()
        await expect(page.locator("#connection")).to_have_text("Live")
        await expect(dialog).to_be_hidden()


async def test_everything_comes_from_the_router(page: Page, served: Served) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))

    await open_page(page, served.url)
    await ended(await ask(page, "Hello?"))

    assert len(requests) > 10
    assert [item.url for item in requests if not item.url.startswith(served.url + "/")] == []


async def test_the_keyboard_is_enough(page: Page, served: Served) -> None:
    await open_page(page, served.url)
    question = page.get_by_label("Your message")
    for _ in range(6):
        if await question.evaluate("node => node === document.activeElement"):
            break
        await page.keyboard.press("Tab")

    await page.keyboard.type("two")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("lines")
    await page.keyboard.press("Enter")

    await ended(page.locator(".message.assistant"))
    assert "two\nlines" in prompts(served)[0]
    await expect(question).to_be_focused()


async def test_a_screen_reader_hears_an_answer_once(page: Page, served: Served) -> None:
    await open_page(page, served.url)

    await ended(await ask(page, "Hello?"))

    await expect(page.locator("#announcer")).to_have_text("Answer done. Good morning!")
    await expect(page.get_by_role("log", name="Messages")).to_have_attribute("aria-live", "off")
    await expect(page.locator("body")).to_match_aria_snapshot(
        """
        - banner:
          - heading "Quire" [level=1]
        - main:
          - region "Chat":
            - log "Messages":
              - article:
                - heading "You" [level=3]
              - article:
                - heading "Answer" [level=3]
            - textbox "Your message"
            - button "Send"
          - region "Replicas":
            - heading "Last requests" [level=2]
        """
    )


async def test_dark_mode_is_dark_and_readable(page: Page, served: Served) -> None:
    await page.emulate_media(color_scheme="dark")
    await open_page(page, served.url)

    answer = await ask(page, "Hello?")

    await ended(answer)
    await expect(page.locator("body")).to_have_css("background-color", "rgb(16, 19, 23)")
    await expect(answer).to_have_css("color", "rgb(232, 235, 240)")
    assert await text_of(answer) == "Good morning!"
