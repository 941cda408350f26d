"""The program of `python -m quire_engine`: flags in, exit status out."""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError, EngineDeadError
from quire_engine.flags import Parser, add_model, add_options
from quire_engine.rpc.logs import Announcer, configure_logging
from quire_engine.server.async_engine import Core
from quire_engine.server.config import ServerConfig
from quire_engine.server.loading import load_engine
from quire_engine.server.model_card import ModelCard
from quire_engine.server.run import EXIT_DEAD, EXIT_KILLED, Load, run_engine


def serve(arguments: Sequence[str] | None, *, prog: str) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    parser = Parser(
        prog,
        "Serve one engine over gRPC. SIGTERM finishes what is in flight and stops.",
        usage="[MODEL] [options]",
    )
    add_model(parser)
    add_options(parser, EngineConfig)
    add_options(parser, ServerConfig)
    namespace = parser.parse_args(arguments)
    engine = parser.build(EngineConfig, namespace)
    server = parser.build(ServerConfig, namespace)
    say = Announcer("quire_engine", server.log_format)

    def load() -> Coroutine[Any, Any, tuple[Core, ModelCard]]:
        return load_engine(engine, say, log_level=server.log_level, log_format=server.log_format)

    return run_program(parser, load, server)


def run_program(parser: Parser, load: Load, server: ServerConfig) -> int:
    """Serve what `load` brings; what went wrong becomes one line and a status."""
    configure_logging(server.log_level, server.log_format)
    say = Announcer("quire_engine", server.log_format)
    try:
        return asyncio.run(run_engine(load, server, say, environment=os.environ))
    except ConfigError as error:
        parser.error(str(error))
    except EngineDeadError as error:
        parser.exit(EXIT_DEAD, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:  # before the signal handlers were there, or after
        return EXIT_KILLED
