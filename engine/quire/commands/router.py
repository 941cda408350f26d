"""`quire router`: the OpenAI gateway alone, in front of engines that run elsewhere."""

from collections.abc import Sequence

from quire.extras import require_extra
from quire_engine.flags import Parser, add_options


def run(prog: str, arguments: Sequence[str]) -> int:
    """Serve HTTP until SIGTERM; return the exit status."""
    require_extra("router")
    from quire_router.config import RouterConfig
    from quire_router.errors import ConfigError

    parser = Parser(
        prog,
        "Serve OpenAI's API over HTTP and send each request to the engine that will answer first.",
        epilog=f"example: {prog} --replicas engine-0:50051 engine-1:50051",
    )
    add_options(parser, RouterConfig)
    namespace = parser.parse_args(arguments)
    config = parser.build(RouterConfig, namespace, errors=(ConfigError, ValueError))
    # Only here: the server brings FastAPI, and a wrong flag should be told before that.
    from quire_router.server import run as serve

    try:
        return serve(config)
    except ConfigError as error:
        parser.error(str(error))
