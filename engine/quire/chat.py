"""A conversation with a served model in the terminal, or line by line through a pipe."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from quire.openai_client import OpenAIClient, ServerError
from quire_engine.config import option
from quire_engine.errors import ConfigError

HELP = "/clear forgets the conversation, /exit leaves (Ctrl-D too), Ctrl-C stops an answer"
DEFAULT_URL = "http://localhost:8000"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """Whom to talk to, and how it samples."""

    url: str = option(DEFAULT_URL, "address of the server")
    model: str | None = option(None, "name of the model; default: the first that is served")
    api_key: str | None = option(None, "key to send; default: QUIRE_API_KEY or OPENAI_API_KEY")
    system: str | None = option(None, "system prompt")
    temperature: float | None = option(None, "0 is greedy; default: the server's")
    top_p: float | None = option(None, "share of probability to sample from; default: the server's")
    top_k: int | None = option(None, "number of tokens to sample from; default: the server's")
    max_tokens: int | None = option(None, "longest answer; default: until the context is full")
    seed: int | None = option(None, "makes sampling repeatable")

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url must start with http:// or https://, not {self.url!r}")

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the fields of a request that were chosen."""
        names = ("temperature", "top_p", "top_k", "max_tokens", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(slots=True)
class Conversation:
    """The messages so far."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Keep an answer; a question that got none is taken back."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()


class Screen(Protocol):
    """Where the conversation is shown."""

    def read(self) -> str:
        """Return the next line of the user's; raise EOFError when there is none."""
        ...

    def write(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        """Show something that is not part of the conversation."""
        ...

    def fail(self, text: str) -> None: ...


class PipeScreen:
    """Lines in, answers out, nothing else."""

    def __init__(self, source: TextIO, out: TextIO, errors: TextIO) -> None:
        self._source, self._out, self._errors = source, out, errors

    def read(self) -> str:
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def note(self, text: str) -> None:
        """Say nothing: a pipe carries answers alone."""

    def fail(self, text: str) -> None:
        self._errors.write(f"quire chat: error: {text}\n")


class TerminalScreen:
    """A prompt with line editing, and colours."""

    def __init__(self) -> None:
        import contextlib

        from rich.console import Console

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # importing it gives input() history and editing
        self._console = Console(highlight=False)

    def read(self) -> str:
        # The codes are marked as taking no width, or line editing would miscount columns.
        return input("\001\033[1;36m\002> \001\033[0m\002")

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def fail(self, text: str) -> None:
        self._console.print(text, style="red", markup=False)


class Chat:
    """Asks, streams the answer, remembers both."""

    def __init__(
        self,
        config: ChatConfig,
        screen: Screen,
        *,
        make_client: Callable[[], OpenAIClient],
        is_interactive: bool,
    ) -> None:
        self._config = config
        self._screen = screen
        self._make_client = make_client
        self._is_interactive = is_interactive
        self._conversation = Conversation(config.system)

    def run(self) -> int:
        """Talk until the end of the input; return the exit status."""
        try:
            model = self._config.model or asyncio.run(self._first_model())
        except ServerError as error:
            self._screen.fail(str(error))
            return 1
        self._screen.note(f"{model} at {self._config.url}; {HELP}")
        while (line := self._next_line()) is not None:
            if line == "/clear":
                self._conversation.clear()
            elif line in ("/help", "/?"):
                self._screen.note(HELP)
            elif line and not self._turn(model, line) and not self._is_interactive:
                return 1
        return 0

    async def _first_model(self) -> str:
        async with self._make_client() as client:
            models = await client.models()
        if not models:
            raise ServerError(f"{self._config.url} serves no model")
        return models[0]

    def _next_line(self) -> str | None:
        try:
            line = self._screen.read().strip()
        except KeyboardInterrupt:
            self._screen.write("\n")
            return ""
        except EOFError:
            if self._is_interactive:
                self._screen.write("\n")
            return None
        return None if line in ("/exit", "/quit") else line

    def _turn(self, model: str, line: str) -> bool:
        """Ask and show the answer; return whether there was one."""
        self._conversation.ask(line)
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(model, pieces))
        except KeyboardInterrupt:
            self._screen.note(" (stopped)")
        except ServerError as error:
            self._screen.write("\n" if pieces else "")
            self._screen.fail(str(error))
            self._conversation.answer("")
            return False
        self._conversation.answer("".join(pieces))
        return True

    async def _stream(self, model: str, pieces: list[str]) -> None:
        body = {
            "model": model,
            "messages": self._conversation.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._config.sampling,
        }
        usage: dict[str, int] = {}
        started_at, first_at = time.monotonic(), 0.0
        async with self._make_client() as client:
            async for chunk in client.stream("/v1/chat/completions", body):
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    if text := choice["delta"].get("content"):
                        first_at = first_at or time.monotonic()
                        pieces.append(text)
                        self._screen.write(text)
        self._screen.write("\n")
        if first_at and usage:
            self._screen.note(_speed(usage["completion_tokens"], started_at, first_at))


def _speed(num_tokens: int, started_at: float, first_at: float) -> str:
    decode_s = max(time.monotonic() - first_at, 1e-9)
    rate = f", {(num_tokens - 1) / decode_s:.1f} tok/s" if num_tokens > 1 else ""
    return f"{num_tokens} tokens, the first after {first_at - started_at:.2f} s{rate}"
