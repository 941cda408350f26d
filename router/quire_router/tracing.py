"""From the configuration to who traces requests."""

from collections.abc import Mapping

from quire_engine.rpc.collector import TracingError
from quire_engine.rpc.tracing import require_packages, start_tracing
from quire_router.config import RouterConfig
from quire_router.errors import ConfigError
from quire_router.traces import NO_TRACER, RequestTracer


def check_tracing(config: RouterConfig) -> None:
    """Check that traces can be sent, if they are to be; nothing is started.

    Raises:
        ConfigError: packages are missing.
    """
    if config.otlp_traces_endpoint is None:
        return
    try:
        require_packages()
    except TracingError as error:
        raise ConfigError(str(error)) from None


def make_tracer(config: RouterConfig, environment: Mapping[str, str]) -> RequestTracer:
    """Return who traces requests; close it in the end.

    Raises:
        ConfigError: the environment has a wrong idea of the protocol.
    """
    if config.otlp_traces_endpoint is None:
        return NO_TRACER
    from quire_router.spans import SpanTracer

    try:
        tracing = start_tracing(
            config.otlp_traces_endpoint,
            config.otlp_traces_protocol,
            service="quire-router",
            environment=environment,
        )
    except TracingError as error:
        raise ConfigError(str(error)) from None
    return SpanTracer(tracing)
