"""A real OTLP receiver: the official service over gRPC and HTTP, keeping the spans it is sent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

DEADLINE_S = 60.0
ERROR = trace_pb2.Status.STATUS_CODE_ERROR
SERVER = trace_pb2.Span.SPAN_KIND_SERVER
CLIENT = trace_pb2.Span.SPAN_KIND_CLIENT
INTERNAL = trace_pb2.Span.SPAN_KIND_INTERNAL


@dataclass(frozen=True, kw_only=True)
class Received:
    """One span, with the service that it comes from."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]


@dataclass
class Receiver:
    """What has come in."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    """As they came, to search for what must not be in them."""
    is_down: bool = False
    """Whether it refuses; over HTTP only."""

    def take(self, request: service_pb2.ExportTraceServiceRequest) -> None:
        self.requests.append(request.SerializeToString())
        for resource_spans in request.resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self.spans.append(_received(span, resource["service.name"]))

    def trace(self, trace_id: str) -> list[Received]:
        return [span for span in self.spans if span.trace_id == trace_id]

    async def wait_for(self, *names: str) -> list[Received]:
        """Wait until so many spans with these names are there; return all spans."""
        async with asyncio.timeout(DEADLINE_S):
            while not self._has(names):  # noqa: ASYNC110 - from other threads and processes
                await asyncio.sleep(0.02)
        return self.spans

    def _has(self, names: Sequence[str]) -> bool:
        came = Counter(span.name for span in self.spans)
        return Counter(names) <= came

    def named(self, name: str) -> list[Received]:
        """Return the spans with a name, in order of their beginning."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_ns)


@asynccontextmanager
async def grpc_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(_Service(receiver), server)  # type: ignore[no-untyped-call]
    receiver.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)


@asynccontextmanager
async def http_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()

    async def export(request: web.Request) -> web.Response:
        if receiver.is_down:
            return web.Response(status=400)
        assert request.content_type == "application/x-protobuf"
        receiver.take(service_pb2.ExportTraceServiceRequest.FromString(await request.read()))
        body = service_pb2.ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", export)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


class _Service(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(  # noqa: N802 - the contract's name
        self, request: service_pb2.ExportTraceServiceRequest, context: Any
    ) -> service_pb2.ExportTraceServiceResponse:
        self._receiver.take(request)
        return service_pb2.ExportTraceServiceResponse()


def _received(span: trace_pb2.Span, service: str) -> Received:
    return Received(
        service=service,
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tracestate=span.trace_state,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=span.status.code,
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, str(kind))
