import pytest

from quire_engine.rpc.collector import GRPC, HTTP, Collector, TracingError, parse_collector


@pytest.mark.parametrize(
    ("url", "protocol", "sent_to"),
    [
        ("http://jaeger:4318", HTTP, "http://jaeger:4318/v1/traces"),
        ("http://jaeger:4318/", HTTP, "http://jaeger:4318/v1/traces"),
        ("http://gateway:80/otlp/v1/traces", HTTP, "http://gateway:80/otlp/v1/traces"),
        ("https://otlp.example.com", HTTP, "https://otlp.example.com:443/v1/traces"),
        ("grpc://jaeger", GRPC, "http://jaeger:4317"),
        ("grpc://[::1]:9000", GRPC, "http://[::1]:9000"),
        ("grpcs://jaeger:443", GRPC, "https://jaeger:443"),
        ("http://jaeger:4317", GRPC, "http://jaeger:4317"),
    ],
)
def test_the_url_says_how_to_send(url: str, protocol: str, sent_to: str) -> None:
    collector = parse_collector(url)

    assert (collector.protocol, collector.url) == (protocol, sent_to)


def test_the_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    def protocol(flag: str, **environment: str) -> str:
        return parse_collector("http://collector:9000", flag, environment).protocol

    assert protocol("auto") == HTTP
    assert protocol("auto", OTEL_EXPORTER_OTLP_PROTOCOL="grpc") == GRPC
    assert protocol("http/protobuf", OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc") == HTTP
    assert protocol("grpc") == GRPC
    with pytest.raises(TracingError, match="http/json"):
        protocol("auto", OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/json")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "collector:4317",
        "ftp://collector",
        "http://",
        "http://collector:port",
        "http://collector:0",
        "http://user:secret@collector:4318",
        "http://collector:4318/?token=secret",
        "http://[::1",
    ],
)
def test_anything_else_is_refused_with_what_would_work(url: str) -> None:
    with pytest.raises(TracingError, match="such as http://collector:4318"):
        parse_collector(url)


def test_a_scheme_and_a_protocol_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TracingError, match="grpc:// means gRPC: use http://"):
        parse_collector("grpc://collector:4317", HTTP)
    assert parse_collector("grpc://collector", GRPC) == Collector(
        protocol=GRPC, host="collector", port=4317, path="", is_secure=False
    )
