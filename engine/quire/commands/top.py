"""`quire top [URL]`: the replicas of a router, live in the terminal."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from quire.extras import MissingExtraError, is_installed
from quire_engine.flags import Parser, add_options

PACKAGES = ("aiohttp", "msgspec", "rich")


def run(prog: str, arguments: Sequence[str]) -> int:
    """Show until q or Ctrl-C, or once; return the exit status."""
    from quire.top.options import DEFAULT_URL, TopConfig

    parser = Parser(
        prog,
        "Show the replicas of a router live: state, load, cache, tokens per second, and where the "
        "last requests went and why. Without a terminal to draw on it prints them once.",
        usage="[URL] [options]",
        epilog=f"examples: {prog} http://localhost:8000; {prog} --once --json | jq .replicas",
    )
    parser.add_argument(
        "url",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="URL",
        help=f"address of the router (default: {DEFAULT_URL})",
    )
    add_options(parser, TopConfig, exclude=("url",))
    config = parser.build(TopConfig, parser.parse_args(arguments))
    if missing := [name for name in PACKAGES if not is_installed(name)]:
        raise MissingExtraError(f"not installed: {', '.join(missing)}; run: pip install quire")
    from quire.openai_client import ServerError
    from quire.top.program import show

    environment = os.environ.get("QUIRE_API_KEY", "").split(",")[0]
    api_key = config.api_key or environment or os.environ.get("OPENAI_API_KEY", "")
    try:
        asyncio.run(show(config, api_key))
    except ServerError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    return 0
