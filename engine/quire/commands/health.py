"""`quire health TARGET`: whether an engine, a router or an operator serves, for probes."""

import importlib.util
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from quire.extras import MissingExtraError
from quire_engine.flags import Parser

DEFAULT_TIMEOUT_S = 5.0


def run(prog: str, arguments: Sequence[str]) -> int:
    """Print how the target is; return 0 if it serves, else 1."""
    parser = Parser(
        prog,
        "Ask once whether something serves: exit status 0 means yes.",
        epilog=f"example: {prog} localhost:50051, {prog} http://localhost:8000/ready",
    )
    parser.add_argument(
        "target",
        help="engine: host:port or unix:/path, asked over gRPC; http(s):// URL: 200 is yes",
    )
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds to wait for the answer"
    )
    namespace = parser.parse_args(arguments)
    is_http = namespace.target.startswith(("http://", "https://"))
    ask = ask_http if is_http else ask_grpc
    is_serving, answer = ask(namespace.target, namespace.timeout)
    (sys.stdout if is_serving else sys.stderr).write(f"{namespace.target}: {answer}\n")
    return 0 if is_serving else 1


def ask_http(url: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether a GET of `url` succeeds, and its status or error."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return True, str(response.status)
    except urllib.error.HTTPError as error:
        return False, f"{error.code} {error.reason}"
    except OSError as error:  # URLError and TimeoutError are both
        return False, str(getattr(error, "reason", error))


def ask_grpc(target: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether the gRPC health service at `target` says SERVING, and what it said."""
    # The engine's extra brings it as well as the router's, so neither is asked for as a whole.
    if importlib.util.find_spec("grpc_health") is None:
        raise MissingExtraError("not installed: grpc; run: pip install 'quire[router]'")
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return answer.status == health_pb2.HealthCheckResponse.SERVING, status
