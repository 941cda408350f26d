"""Everything about the router that can be configured, parsed once, validated once, frozen.

Each field is also a flag of `quire router`; names are vLLM's where it has one.
"""

from dataclasses import dataclass
from typing import Any

from quire_engine.rpc.collector import TRACES_PROTOCOLS, TracingError, parse_collector
from quire_engine.rpc.logs import LOG_FORMATS
from quire_router.errors import ConfigError
from quire_router.options import option
from quire_router.pool_config import PoolConfig

MAX_WORKERS = 64
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(PoolConfig):
    """Where to listen, who may call, how prompts are made, and which engines answer."""

    host: str = option("0.0.0.0", "address to listen on")
    port: int = option(8000, "port to listen on; 0: any free one")
    workers: int = option(1, "processes that the router runs as, on one port: at most 64")
    api_key: tuple[str, ...] = option(
        (), "keys that clients must send one of; default: QUIRE_API_KEY (comma-separated), or none"
    )
    api_key_file: str | None = option(None, "file with one API key per line")
    allowed_origins: tuple[str, ...] = option(
        (), "origins that browsers may call from; * is any; default: none"
    )
    page: bool = option(
        True, "serve a page at /: a chat, and the replicas live; its requests need the key too"
    )
    chat_template: str | None = option(
        None, "file with a chat template, or the template itself; default: the model's"
    )
    trust_request_chat_template: bool = option(
        False, "let requests bring their own chat_template, which is code: it can stall the router"
    )
    default_chat_template_kwargs: dict[str, Any] | None = option(
        None, "JSON: variables for the chat template where a request's chat_template_kwargs are not"
    )
    response_role: str = option("assistant", "role of generated messages")
    max_body_bytes: int = option(32 * 2**20, "largest request body; more is refused with 413")
    shutdown_delay: float = option(
        0.0,
        "seconds after SIGTERM in which new requests are still taken, /readyz saying no: what load "
        "balancers need to notice",
    )
    shutdown_timeout: float = option(30.0, "seconds that requests in flight get to end after that")
    enable_force_include_usage: bool = option(
        False, "end every stream with usage, asked for or not"
    )
    return_tokens_as_token_ids: bool = option(
        False, "write tokens in logprobs as token_id:N, for every request"
    )
    slo_ttft_ms: float | None = option(
        None, "target for the time to first token, in ms: metrics count the requests that meet it"
    )
    slo_itl_ms: float | None = option(
        None, "target for the mean time per token after that, in ms: counted likewise"
    )
    tokenizer_threads: int = option(2, "threads that tokenize")
    tokenizer_cache_bytes: int = option(64 * 2**20, "size of the cache of tokenized texts; 0: none")
    log_level: str = option("info", "what is logged", choices=LOG_LEVELS)
    log_format: str = option("text", "form of log lines", choices=LOG_FORMATS)
    access_log: bool = option(
        False, "log every HTTP request: id, route, status, duration (never its content)"
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "OpenTelemetry collector to send traces to, such as http://collector:4318 or "
        "grpc://collector:4317; default: none",
    )
    otlp_traces_protocol: str = option(
        "auto", "how to send them; auto: as the URL says", choices=TRACES_PROTOCOLS
    )

    def __post_init__(self) -> None:
        # super() needs the class cell, which slots=True would leave pointing at the wrong class.
        PoolConfig.__post_init__(self)
        _check_range("port", self.port, 0, 65535)
        _check_range("workers", self.workers, 1, MAX_WORKERS)
        _check_range("max_body_bytes", self.max_body_bytes, 1, None)
        _check_range("shutdown_delay", self.shutdown_delay, 0, None)
        _check_range("shutdown_timeout", self.shutdown_timeout, 0, None)
        _check_range("tokenizer_threads", self.tokenizer_threads, 1, 256)
        _check_range("tokenizer_cache_bytes", self.tokenizer_cache_bytes, 0, None)
        for name in ("slo_ttft_ms", "slo_itl_ms"):
            target = getattr(self, name)
            if target is not None and target <= 0:
                raise ConfigError(f"{name} must be more than 0, not {target}")
        for name, choices in (("log_level", LOG_LEVELS), ("log_format", LOG_FORMATS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be one of {', '.join(choices)}; not {getattr(self, name)!r}"
                )
        _check_collector(self.otlp_traces_endpoint, self.otlp_traces_protocol)


def _check_collector(url: str | None, protocol: str) -> None:
    if url is None:
        return
    try:
        parse_collector(url, protocol)
    except TracingError as error:
        raise ConfigError(str(error)) from None


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ConfigError(f"{name} must be {limit}, not {value}")
