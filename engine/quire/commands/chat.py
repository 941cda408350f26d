"""`quire chat`: talk to a served model."""

import os
import sys
from collections.abc import Sequence

from quire_engine.flags import Parser, add_options


def run(prog: str, arguments: Sequence[str]) -> int:
    """Talk until Ctrl-D or the end of the input; return the exit status."""
    from quire.chat import HELP, Chat, ChatConfig, PipeScreen, Screen, TerminalScreen
    from quire.openai_client import OpenAIClient

    parser = Parser(
        prog,
        f"Talk to a served model. In the terminal: {HELP}. Piped: each line of the input is a "
        "question, and only answers are printed.",
        epilog=f'example: echo "What is the capital of France?" | {prog} --temperature 0',
    )
    add_options(parser, ChatConfig)
    config = parser.build(ChatConfig, parser.parse_args(arguments))
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    pipe = PipeScreen(sys.stdin, sys.stdout, sys.stderr)
    screen: Screen = TerminalScreen() if is_interactive else pipe
    environment = os.environ.get("QUIRE_API_KEY", "").split(",")[0]
    api_key = config.api_key or environment or os.environ.get("OPENAI_API_KEY", "")
    chat = Chat(
        config,
        screen,
        make_client=lambda: OpenAIClient(config.url, api_key=api_key),
        is_interactive=is_interactive,
    )
    return chat.run()
