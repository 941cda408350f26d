"""`quire chat` through a pipe against a server on a socket, and its terminal side with a script."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openai_server import MODEL, OpenAIServer
from quire.chat import Chat, ChatConfig, Conversation
from quire.openai_client import OpenAIClient
from quire_engine.errors import ConfigError
from quire_process import run_quire
from serve_process import free_port


class ScriptedScreen:
    """A terminal at which the lines are typed by a script; an exception is what a key raises."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines: Iterator[str | BaseException] = iter([*lines, EOFError()])
        self.shown = ""
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.on_write: Callable[[str], None] = lambda text: None

    def read(self) -> str:
        line = next(self._lines)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text: str) -> None:
        self.shown += text
        self.on_write(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def fail(self, text: str) -> None:
        self.errors.append(text)


async def talk(server: OpenAIServer, screen: ScriptedScreen, **options: Any) -> int:
    """Hold a terminal conversation in a thread of its own, as `Chat` runs loops of its own."""
    config = ChatConfig(url=server.url, **options)
    chat = Chat(config, screen, make_client=lambda: OpenAIClient(config.url), is_interactive=True)
    return await asyncio.to_thread(chat.run)


async def test_each_line_of_a_pipe_is_a_question_and_only_answers_are_printed() -> None:
    async with OpenAIServer(words=("Hel", "lo!")).run() as server:
        status, out, err = await run_quire(
            *("chat", "--url", f"{server.url}/v1/", "--system", "Be brief."),
            *("--temperature", "0", "--max-tokens", "1k", "--seed", "7"),
            stdin="Hi\n\nAgain\n",
        )

    assert (status, out, err) == (0, "Hello!\nHello!\n", "")
    first, second = server.bodies
    assert first["model"] == MODEL
    assert (first["temperature"], first["max_tokens"], first["seed"]) == (0.0, 1024, 7)
    assert "top_p" not in first
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Again"},
    ]


async def test_nothing_listening_is_said_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    status, out, err = await run_quire("chat", "--url", url, stdin="Hi\n")

    assert (status, out) == (1, "")
    assert err == (f"quire chat: error: nothing listens at {url} (`quire serve` starts a server)\n")


async def test_a_refusal_ends_a_pipe_with_the_servers_message() -> None:
    async with OpenAIServer(refuse=lambda body: "no such model").run() as server:
        status, out, err = await run_quire("chat", "--url", server.url, stdin="Hi\nAgain\n")

    assert (status, out) == (1, "")
    assert err == "quire chat: error: 400: no such model\n"


async def test_a_terminal_goes_on_after_an_error_and_forgets_the_question() -> None:
    def refuse(body: dict[str, Any]) -> str:
        return "try again" if len(server.bodies) == 1 else ""

    server, screen = OpenAIServer(refuse=refuse), ScriptedScreen("One", "Two")
    async with server.run():
        status = await talk(server, screen)

    assert status == 0
    assert screen.errors == ["400: try again"]
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "Two"}]
    assert screen.shown == "one two three\n\n"
    assert screen.notes[-1].startswith("3 tokens, the first after 0.")


async def test_a_stream_that_breaks_shows_what_came_and_why_it_ended() -> None:
    screen = ScriptedScreen("One")
    async with OpenAIServer(fail_after=2).run() as server:
        assert await talk(server, screen) == 0

    assert screen.shown == "one two \n\n"
    assert screen.errors == ["the engine went away"]


async def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    def interrupt(text: str) -> None:
        if text == "two ":
            raise KeyboardInterrupt

    screen = ScriptedScreen("One", "Two")
    screen.on_write = interrupt
    async with OpenAIServer(itl_s=0.01).run() as server:
        assert await talk(server, screen) == 0

    assert screen.notes[-1] == " (stopped)"
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "Two"},
    ]


async def test_ctrl_c_at_the_prompt_only_starts_a_new_line() -> None:
    screen = ScriptedScreen(KeyboardInterrupt(), "One", "/exit", "Two")
    async with OpenAIServer().run() as server:
        assert await talk(server, screen) == 0

    assert len(server.bodies) == 1


async def test_clear_forgets_everything_but_the_system_prompt() -> None:
    screen = ScriptedScreen("One", "/clear", "/help", "Two")
    async with OpenAIServer().run() as server:
        await talk(server, screen, system="S", model="chosen")

    assert server.bodies[1]["model"] == "chosen"
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["S", "Two"]


def test_a_question_without_answer_is_taken_back() -> None:
    conversation = Conversation()
    conversation.ask("One")
    conversation.answer("")

    assert conversation.messages == []


def test_an_address_needs_its_scheme() -> None:
    with pytest.raises(ConfigError, match="localhost:8000"):
        ChatConfig(url="localhost:8000")
