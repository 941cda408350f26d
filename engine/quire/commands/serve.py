"""`quire serve [MODEL]`: a router and N engines on this machine, as one command."""

import argparse
import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from quire.child import Child, ChildSpec
from quire.console import Console, JsonConsole
from quire.deployment import Deployment, visible_gpus
from quire.extras import require_extra
from quire.probe import RouterProbe
from quire.supervisor import Supervisor
from quire_engine.config import EngineConfig
from quire_engine.flags import (
    Parser,
    add_model,
    add_options,
    arguments_from,
    option_names,
)
from quire_engine.progress import VARIABLE as PROGRESS_VARIABLE
from quire_engine.server.config import LOG_LEVELS, ServerConfig

PLACED_BY_SERVE = ("host", "port", "uds", "metrics_port", "replicas")
OWN_FLAGS = (*PLACED_BY_SERVE, "log_level")
"""Options of engine and router that `serve` sets itself, or has under a meaning of its own."""


def run(prog: str, arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C; return the exit status."""
    require_extra("router")
    parser = make_parser(prog)
    namespace = parser.parse_args(arguments)
    require_extra("engine")
    check(parser, namespace)
    host, port = namespace.host, free_port(parser, namespace.host, namespace.port)
    socket_dir = Path(tempfile.mkdtemp(prefix="quire-", dir=_short_temp_dir()))
    try:
        deployment = make_deployment(namespace, host, port, socket_dir)
        is_json = getattr(namespace, "log_format", "text") == "json"
        console = JsonConsole() if is_json else Console()
        return asyncio.run(supervise(deployment, _api_key(namespace), _grace_s(namespace), console))
    finally:
        shutil.rmtree(socket_dir, ignore_errors=True)


def make_parser(prog: str) -> Parser:
    """Return the parser: own flags, those of the router, those of every engine."""
    from quire_router.config import RouterConfig

    parser = Parser(
        prog,
        "Serve a model: OpenAI endpoint, router and engines on this machine. One Ctrl-C finishes "
        "what is in flight and stops; a second one stops at once.",
        usage="[MODEL] [options]",
        epilog="example: quire serve HuggingFaceTB/SmolLM2-135M-Instruct --port 8000 --replicas 2",
    )
    add_model(parser)
    own = parser.add_argument_group("serve", "Where to listen, and how many engines to run.")
    own.add_argument("--host", default="0.0.0.0", help="address to listen on (default: 0.0.0.0)")
    own.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: any free one (default: 8000)"
    )
    own.add_argument(
        "--replicas",
        "--data-parallel-size",
        "-dp",
        dest="num_replicas",
        type=int,
        default=1,
        metavar="N",
        help="engines behind the router, each with the whole model (default: 1)",
    )
    own.add_argument(
        "--metrics-port",
        type=int,
        default=None,
        metavar="PORT",
        help="Prometheus port of the first engine, the next ones count up; default: free ones; "
        "-1: none. The router's metrics are on its own port, under /metrics",
    )
    own.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="warning",
        help="what engines and router log, besides how they start and stop (default: warning)",
    )
    add_options(parser, EngineConfig)
    add_options(parser, ServerConfig, exclude=OWN_FLAGS)
    shared = {*OWN_FLAGS, *option_names(EngineConfig), *option_names(ServerConfig)}
    add_options(parser, RouterConfig, exclude=shared)
    return parser


def check(parser: Parser, namespace: argparse.Namespace) -> None:
    """Refuse values out of range before any process is started."""
    from quire_router.config import RouterConfig
    from quire_router.errors import ConfigError as RouterConfigError

    if namespace.num_replicas < 1:
        parser.error(f"--replicas must be at least 1, not {namespace.num_replicas}")
    if not 0 <= namespace.port <= 65535:
        parser.error(f"--port must be in [0, 65535], not {namespace.port}")
    _check_gpus(parser, namespace)
    key_file = getattr(namespace, "api_key_file", None)
    if key_file and not Path(key_file).is_file():
        parser.error(f"--api-key-file: no such file: {key_file}")
    parser.build(EngineConfig, namespace)
    parser.build(ServerConfig, _without(namespace, PLACED_BY_SERVE))
    parser.build(
        RouterConfig, _without(namespace, PLACED_BY_SERVE), errors=(RouterConfigError, ValueError)
    )


def _check_gpus(parser: Parser, namespace: argparse.Namespace) -> None:
    size, num_gpus = getattr(namespace, "tensor_parallel_size", 1), len(_gpus(namespace))
    needed = namespace.num_replicas * size
    if size > 1 and 0 < num_gpus < needed:
        parser.error(
            f"--replicas {namespace.num_replicas} with --tensor-parallel-size {size} needs "
            f"{needed} GPUs; this machine has {num_gpus}"
        )


def _gpus(namespace: argparse.Namespace) -> tuple[str, ...]:
    return () if getattr(namespace, "device", "auto") == "cpu" else visible_gpus(os.environ)


def free_port(parser: Parser, host: str, port: int) -> int:
    """Check that the port is free, or find one when it is 0; a taken one ends the process."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            parser.error(
                f"cannot listen on {host}:{port}: {error.strerror} (choose another --port)"
            )
        return int(listener.getsockname()[1])


def make_deployment(
    namespace: argparse.Namespace, host: str, port: int, socket_dir: Path
) -> Deployment:
    """Turn parsed flags into what is to run."""
    from quire_router.config import RouterConfig

    rest = _without(namespace, PLACED_BY_SERVE)
    engine = arguments_from(rest, EngineConfig) + arguments_from(rest, ServerConfig)
    return Deployment(
        num_replicas=namespace.num_replicas,
        host=host,
        port=port,
        socket_dir=socket_dir,
        router_arguments=tuple(arguments_from(rest, RouterConfig)),
        engine_arguments=tuple(engine),
        metrics_port=namespace.metrics_port,
        has_api_key=bool(_api_key(namespace)),
        gpus_per_engine=getattr(namespace, "tensor_parallel_size", 1),
        gpus=_gpus(namespace),
    )


async def supervise(
    deployment: Deployment, api_key: str, grace_s: float, console: Console | None = None
) -> int:
    """Run router and engines until told to stop."""
    started_at = time.monotonic()
    console = console or Console()
    probe = RouterProbe(host=deployment.probe_host, port=deployment.port, api_key=api_key)
    router = ChildSpec(
        name="router", command=deployment.router_command(), is_ready=probe.is_listening
    )
    engines = [_engine(deployment, number, probe) for number in range(deployment.num_replicas)]

    async def announce() -> None:
        model = await probe.model()
        console.say(deployment.banner(model or "MODEL", time.monotonic() - started_at))

    engines_text = "an engine" if len(engines) == 1 else f"{len(engines)} engines"
    console.say(f"Starting {engines_text} and a router on {deployment.url}")
    supervisor = Supervisor(
        Child(router, console),
        [Child(engine, console) for engine in engines],
        console,
        on_ready=announce,
        shutdown_timeout_s=grace_s,
    )
    return await supervisor.run()


def _engine(deployment: Deployment, number: int, probe: RouterProbe) -> ChildSpec:
    # The engine's own output is a pipe; what it draws there is relayed.
    progress = {PROGRESS_VARIABLE: "bar"} if sys.stdout.isatty() else {}
    return ChildSpec(
        name="engine" if deployment.num_replicas == 1 else f"engine {number}",
        command=deployment.engine_command(number),
        is_ready=lambda: probe.is_up(deployment.target(number)),
        before_start=lambda: deployment.socket(number).unlink(missing_ok=True),
        environment=deployment.engine_environment(number, os.environ) | progress,
    )


def _api_key(namespace: argparse.Namespace) -> str:
    keys = getattr(namespace, "api_key", ())
    path = getattr(namespace, "api_key_file", None)
    if not keys and path:
        keys = Path(path).read_text().split()
    if not keys:
        keys = os.environ.get("QUIRE_API_KEY", "").split(",")
    return str(keys[0]).strip() if keys else ""


def _grace_s(namespace: argparse.Namespace) -> float:
    return float(getattr(namespace, "shutdown_timeout", ServerConfig().shutdown_timeout))


def _without(namespace: argparse.Namespace, names: Sequence[str]) -> argparse.Namespace:
    return argparse.Namespace(**{k: v for k, v in vars(namespace).items() if k not in names})


def _short_temp_dir() -> str | None:
    # A unix socket's path holds about 100 bytes, and TMPDIR may be longer than that.
    has_short = len(tempfile.gettempdir()) < 60 or not Path("/tmp").is_dir()
    return None if has_short else "/tmp"
