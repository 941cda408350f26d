"""Spans to an OpenTelemetry collector over OTLP, sent by a thread of their own.

Ended spans wait in a bounded queue (2048; OTEL_BSP_MAX_QUEUE_SIZE), so a collector that is slow or
gone costs spans and nothing else. The SDK's own variables work: OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the rest.

`start_tracing` is what imports OpenTelemetry: it is an optional dependency.
"""

import importlib.util
import logging
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from quire_engine.rpc.collector import GRPC, Collector, TracingError, parse_collector
from quire_engine.rpc.trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

PACKAGES = (
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.grpc",
    "opentelemetry.exporter.otlp.proto.http",
)
FLUSH_S = 3.0
"""How long the last spans get to leave the process."""


class Tracing:
    """Makes spans, and sends them until `close`."""

    def __init__(self, provider: "TracerProvider", exporter: "WatchedExporter") -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("quire", _version())
        self._kinds = {kind.name.lower(): kind for kind in SpanKind}
        self._error = Status(StatusCode.ERROR)
        self._provider = provider
        self._exporter = exporter
        self._propagator = TraceContextTextMapPropagator()
        self._below = set_span_in_context

    def start(
        self, name: str, context: "Context", *, kind: str = "internal", at_ns: int | None = None
    ) -> "Span":
        """Begin a span in a context, now or at a Unix time; `kind` is server, client or internal.

        It is not recorded where the sampler says so: then ask `is_recording` before more work.
        """
        return self._tracer.start_span(
            name, context=context, kind=self._kinds[kind], start_time=at_ns
        )

    def mark_failed(self, span: "Span", error_type: str) -> None:
        """Say that what a span stands for went wrong, and how in a word."""
        span.set_attribute("error.type", error_type)
        span.set_status(self._error)

    def context(self, received: TraceContext) -> "Context":
        """Return what spans below a received context begin with."""
        headers = {"traceparent": received.traceparent, "tracestate": received.tracestate}
        # From an empty context: never a span that somebody else made current.
        return self._propagator.extract({k: v for k, v in headers.items() if v}, context=_empty())

    def below(self, span: "Span") -> "Context":
        """Return what spans below a span begin with."""
        return self._below(span, _empty())

    def sent(self, span: "Span") -> TraceContext:
        """Return what tells others to put their spans below this one."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context=self.below(span))
        return TraceContext(headers.get("traceparent", ""), headers.get("tracestate", ""))

    def close(self, *, timeout_s: float = FLUSH_S) -> None:
        """Send what is left, and stop. Blocks for `timeout_s` at most; harmless when repeated."""
        # The thread is a daemon: what a dead collector keeps waiting must not keep the process.
        flush = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        flush.start()
        flush.join(timeout_s)
        if flush.is_alive():
            logger.warning("traces lost, the collector does not answer after_s=%g", timeout_s)
        self._exporter.shutdown()


class WatchedExporter:
    """An exporter that says once that it fails, and once that it works again."""

    def __init__(self, exporter: "SpanExporter", collector: Collector) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._exporter = exporter
        self._url = collector.url
        self._results = SpanExportResult
        self._num_lost = 0
        self._is_shut = threading.Event()
        self._last_words = _LastWords()
        log = logging.getLogger("opentelemetry")
        # It would log every attempt, and every span that finds the queue full.
        log.propagate = False
        log.addHandler(self._last_words)

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # whatever it is, serving goes on
            self._last_words.text = f"{type(error).__name__}: {error}"
            result = self._results.FAILURE
        if result is self._results.SUCCESS:
            self._succeeded()
        else:
            self._failed(len(spans))
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        if not self._is_shut.is_set():
            self._is_shut.set()
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _succeeded(self) -> None:
        if self._num_lost:
            logger.warning("traces exported again url=%s num_lost=%d", self._url, self._num_lost)
        self._num_lost = 0

    def _failed(self, num_spans: int) -> None:
        if not self._num_lost:
            reason = self._last_words.text
            logger.warning("traces not exported, told once url=%s reason=%s", self._url, reason)
        self._num_lost += num_spans


class _LastWords(logging.Handler):
    """Keeps the last warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def require_packages() -> None:
    """Check that what traces need is installed, without importing it.

    Raises:
        TracingError: naming what is missing and the command that installs it.
    """
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        raise TracingError(
            f"--otlp-traces-endpoint needs what is not installed: {', '.join(missing)}; "
            "run: pip install 'quire[otlp]'"
        )


def start_tracing(
    url: str, protocol: str, *, service: str, environment: Mapping[str, str]
) -> Tracing:
    """Begin to send spans to a collector, which need not be there.

    Raises:
        TracingError: packages are missing, or there can be no such collector.
    """
    collector = parse_collector(url, protocol, environment)
    require_packages()
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = WatchedExporter(_exporter(collector), collector)
    # At exit it would wait for a dead collector for half a minute.
    provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))  # type: ignore[arg-type]  # by form
    logger.info("traces exported url=%s protocol=%s", collector.url, collector.protocol)
    return Tracing(provider, exporter)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _exporter(collector: Collector) -> "SpanExporter":
    exporter: Any
    if collector.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=collector.url, insecure=not collector.is_secure)
    else:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        exporter = trace_exporter.OTLPSpanExporter(endpoint=collector.url)
    return exporter  # type: ignore[no-any-return]  # two classes with one interface


def _resource(service: str) -> "Resource":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = Resource.create({"service.name": service, "service.version": _version()})
    # Attributes given in code would win over those of the environment.
    return own.merge(OTELResourceDetector().detect())


def _empty() -> "Context":
    from opentelemetry.context import Context

    return Context()


def _version() -> str:
    try:
        return version("quire")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
