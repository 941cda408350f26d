"""What the server in front of an engine can be told, each field also a flag."""

from dataclasses import dataclass

from quire_engine.config import option
from quire_engine.errors import ConfigError
from quire_engine.rpc.collector import TRACES_PROTOCOLS, TracingError, parse_collector
from quire_engine.rpc.logs import LOG_FORMATS

LOG_LEVELS = ("debug", "info", "warning", "error")
METRICS_OFF = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Addresses, limits and patience of one engine server."""

    host: str = option("0.0.0.0", "address to listen on")
    port: int = option(50051, "gRPC port; 0 picks a free one")
    uds: str | None = option(None, "unix socket to listen on instead of host and port")
    metrics_port: int = option(
        9464, "port of Prometheus' /metrics; 0 picks a free one, -1 turns it off"
    )
    metrics_compat: str = option(
        "", "vllm: expose the metrics under vLLM's names too", choices=("", "vllm")
    )
    slo_ttft_ms: float | None = option(
        None, "target for the time to first token, in ms: metrics count the requests that meet it"
    )
    slo_itl_ms: float | None = option(
        None, "target for the mean time per token after that, in ms: counted likewise"
    )
    shutdown_timeout: float = option(
        30.0, "seconds that requests in flight get to finish once asked to stop"
    )
    hang_timeout_s: float = option(
        30.0, "seconds without a step, with work in flight, after which health is NOT_SERVING"
    )
    max_message_bytes: int = option(64 << 20, "largest gRPC message accepted, in bytes")
    max_buffered_outputs: int = option(
        262_144, "outputs kept for a client that reads slowly before its stream is ended"
    )
    log_level: str = option("info", "least severe message to log", choices=LOG_LEVELS)
    log_format: str = option("text", "form of log lines", choices=LOG_FORMATS)
    otlp_traces_endpoint: str | None = option(
        None,
        "OpenTelemetry collector to send traces to, such as http://collector:4318 or "
        "grpc://collector:4317; default: none",
    )
    otlp_traces_protocol: str = option(
        "auto", "how to send them; auto: as the URL says", choices=TRACES_PROTOCOLS
    )

    def __post_init__(self) -> None:
        _check_port("port", self.port, low=0)
        _check_port("metrics_port", self.metrics_port, low=METRICS_OFF)
        if self.shutdown_timeout < 0:
            raise ConfigError(f"shutdown_timeout must be at least 0, not {self.shutdown_timeout}")
        if self.hang_timeout_s <= 0:
            raise ConfigError(f"hang_timeout_s must be more than 0, not {self.hang_timeout_s}")
        for name in ("slo_ttft_ms", "slo_itl_ms"):
            target = getattr(self, name)
            if target is not None and target <= 0:
                raise ConfigError(f"{name} must be more than 0, not {target}")
        for name in ("max_message_bytes", "max_buffered_outputs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, choices in (
            ("metrics_compat", ("", "vllm")),
            ("log_level", LOG_LEVELS),
            ("log_format", LOG_FORMATS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be one of {', '.join(choices)}; not {getattr(self, name)!r}"
                )
        _check_collector(self.otlp_traces_endpoint, self.otlp_traces_protocol)

    @property
    def address(self) -> str:
        """The gRPC target to bind."""
        return f"unix:{self.uds}" if self.uds else f"{self.host}:{self.port}"


def _check_collector(url: str | None, protocol: str) -> None:
    if url is None:
        return
    try:
        parse_collector(url, protocol)
    except TracingError as error:
        raise ConfigError(str(error)) from None


def _check_port(name: str, port: int, *, low: int) -> None:
    if not low <= port <= 65535:
        raise ConfigError(f"{name} must be in [{low}, 65535], not {port}")
