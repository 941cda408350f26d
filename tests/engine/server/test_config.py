import pytest

from quire_engine.errors import ConfigError
from quire_engine.flags import Parser, add_options
from quire_engine.server.config import ServerConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70000}, "port must be in [0, 65535], not 70000"),
        ({"metrics_port": -2}, "metrics_port must be in [-1, 65535], not -2"),
        ({"shutdown_timeout": -1.0}, "shutdown_timeout must be at least 0, not -1.0"),
        ({"hang_timeout_s": 0.0}, "hang_timeout_s must be more than 0, not 0.0"),
        ({"max_buffered_outputs": 0}, "max_buffered_outputs must be at least 1, not 0"),
        ({"metrics_compat": "tgi"}, "metrics_compat must be one of"),
        ({"log_level": "loud"}, "log_level must be one of"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**values)  # type: ignore[arg-type]  # one of several types

    assert message in str(caught.value)


def test_a_unix_socket_takes_precedence_over_host_and_port() -> None:
    assert ServerConfig(port=1234).address == "0.0.0.0:1234"
    assert ServerConfig(port=1234, uds="/run/engine.sock").address == "unix:/run/engine.sock"


def test_every_field_is_a_flag() -> None:
    parser = Parser("engine")
    add_options(parser, ServerConfig)

    namespace = parser.parse_args(["--metrics-port", "0", "--shutdown-timeout", "1.5"])

    assert parser.build(ServerConfig, namespace).shutdown_timeout == 1.5
