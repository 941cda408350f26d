"""Where spans go: what `--otlp-traces-endpoint` and `--otlp-traces-protocol` mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

GRPC, HTTP = "grpc", "http/protobuf"
TRACES_PROTOCOLS = ("auto", GRPC, HTTP)
GRPC_PORT = 4317
"""OTLP's registered port for gRPC."""
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})
_PORTS = {"http": 80, "https": 443, "grpc": GRPC_PORT, "grpcs": GRPC_PORT}
"""By scheme, where the URL names none."""


class TracingError(Exception):
    """Traces cannot be sent as configured; the message says what would work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """An OTLP receiver."""

    protocol: str
    """GRPC or HTTP."""
    host: str
    port: int
    path: str
    """Empty for gRPC."""
    is_secure: bool

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_secure else 'http'}://{host}:{self.port}{self.path}"


def parse_collector(
    url: str, protocol: str = "auto", environment: Mapping[str, str] = NO_ENVIRONMENT
) -> Collector:
    """Return the collector that a URL names.

    `auto` is gRPC for grpc://, grpcs:// and port 4317; else it is what the environment's
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL says, else HTTP. Over HTTP no path means /v1/traces.

    Raises:
        TracingError: it is no such URL, or contradicts the protocol.
    """
    parts = _parts(url)
    port = parts.port or _PORTS[parts.scheme]
    protocol = _protocol(parts.scheme, port, protocol, environment)
    return Collector(
        protocol=protocol,
        host=parts.hostname or "",
        port=port,
        path="" if protocol == GRPC else parts.path.rstrip("/") or "/v1/traces",
        is_secure=parts.scheme.endswith("s"),
    )


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        if is_url and not ("@" in parts.netloc or parts.query or parts.fragment):
            return parts
    except ValueError:  # a port that is no number, a broken IPv6 address
        pass
    raise TracingError(
        "otlp_traces_endpoint must be a URL such as http://collector:4318 or "
        "grpc://collector:4317, without credentials (those go into "
        f"OTEL_EXPORTER_OTLP_HEADERS); not {url!r}"
    )


def _protocol(scheme: str, port: int, protocol: str, environment: Mapping[str, str]) -> str:
    is_grpc_url = scheme.startswith("grpc")
    if protocol == "auto":
        if is_grpc_url or port == GRPC_PORT:
            return GRPC
        protocol = next(filter(None, map(environment.get, PROTOCOL_VARIABLES)), HTTP)
    if protocol not in (GRPC, HTTP):
        raise TracingError(
            f"otlp_traces_protocol must be one of {', '.join(TRACES_PROTOCOLS)}; not {protocol!r}"
        )
    if is_grpc_url and protocol == HTTP:
        raise TracingError(
            f"otlp_traces_protocol is {HTTP}, and {scheme}:// means gRPC: use http://"
        )
    return protocol
