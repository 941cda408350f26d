"""The `quire` command: finds the subcommand, and imports nothing that it does not need."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from quire.extras import MissingExtraError

COMMANDS = {
    "serve": "serve a model: OpenAI endpoint, router and engines on this machine",
    "engine": "one engine: gRPC server in front of one model",
    "router": "the OpenAI gateway in front of engines that run elsewhere",
    "chat": "talk to a served model in the terminal",
    "top": "the replicas of a router, live in the terminal",
    "fetch": "download a model, for engines that start later or offline",
    "plan": "which GPUs hold a model, and how many tokens they then cache",
    "bench": "measure: latency, throughput, serve, compare",
    "health": "ask an engine, a router or an operator whether it serves",
    "version": "print versions of Quire, Python, torch and the device",
}
SERVERS = ("serve", "engine", "router")
USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(help_text("quire", "LLM serving on one box or a cluster.", COMMANDS))
        return 0
    if name in ("-V", "--version"):
        name = "version"
    if name not in COMMANDS:
        return refuse_command("quire", name, COMMANDS)
    if name in SERVERS and os.getpid() == 1:
        # The kernel drops what the first process of a container has no handler for, so that one
        # told to stop before it is up would be waited for, and killed, in the end. It ends without
        # unwinding, since modules written in C do not all survive an exception while they load.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    command = importlib.import_module(f"quire.commands.{name}")
    return run_command(f"quire {name}", lambda: command.run(f"quire {name}", rest))


def run_command(prog: str, command: Callable[[], int]) -> int:
    """Run `command`; Ctrl-C, a closed pipe and a missing extra end it without a traceback."""
    try:
        return command()
    except MissingExtraError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def help_text(prog: str, description: str, commands: dict[str, str]) -> str:
    """Return the help of a command that only has subcommands."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    usage = f"usage: {prog} COMMAND [options]"
    hint = f"`{prog} COMMAND --help` shows the options of a command."
    return "\n".join([usage, "", description, "", "commands:", *lines, "", hint, ""])


def refuse_command(prog: str, name: str, commands: dict[str, str]) -> int:
    """Print one line that names the nearest subcommand; return the status of wrong usage."""
    import difflib

    near = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
    sys.stderr.write(f"{prog}: error: unknown command: {name}; {hint}\n")
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
