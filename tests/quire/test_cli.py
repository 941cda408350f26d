"""The `quire` command itself: subcommands, help, what is missing, what is wrong."""

import argparse
import importlib.metadata
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quire.cli import COMMANDS, main
from quire.commands import serve
from quire.commands.bench import MEASUREMENTS
from quire.deployment import Deployment
from quire.extras import MissingExtraError, require_extra
from quire.probe import is_replica_up
from quire_engine.config import EngineConfig
from quire_engine.flags import option_names
from quire_engine.server.config import ServerConfig
from quire_router.config import RouterConfig


def run_main(*arguments: str) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main() == run_main("--help") == run_main("-h") == 0

    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name}" not in text] == []


@pytest.mark.parametrize("name", [*COMMANDS, *(f"bench {name}" for name in MEASUREMENTS)])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(*name.split(), "--help") == 0

    assert capsys.readouterr().out.startswith(f"usage: quire {name} ")


def test_help_comes_without_frameworks() -> None:
    code = "import sys; from quire.cli import main; main(['--help']); "
    code += "assert not {'torch', 'aiohttp', 'numpy', 'grpc', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("serv") == 2

    assert capsys.readouterr().err == ("quire: error: unknown command: serv; did you mean serve?\n")


@pytest.mark.parametrize("command", ["serve", "engine", "router", "chat", "bench serve", "version"])
def test_a_wrong_flag_ends_with_2_and_is_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(*command.split(), "--no-such-flag") == 2

    message = capsys.readouterr().err
    assert message.startswith(f"quire {command}: error: unknown flag: --no-such-flag")
    assert message.count("\n") == 1


def test_version_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("version") == 0
    whole = capsys.readouterr().out
    assert run_main("--version") == 0
    assert run_main("version", "--short") == 0
    short = capsys.readouterr().out.splitlines()[-1]

    assert short == importlib.metadata.version("quire")
    assert f"quire       {short}\n" in whole
    assert "\ntorch " in whole
    assert "\ndevice " in whole


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> object:
        return None if name in ("torch", "uvicorn") else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)

    assert run_main("engine") == 1
    assert run_main("router") == 1
    assert capsys.readouterr().err.splitlines() == [
        "quire engine: error: not installed: torch; run: pip install 'quire[engine]'",
        "quire router: error: not installed: uvicorn; run: pip install 'quire[router]'",
    ]
    with pytest.raises(MissingExtraError, match=r"torch, uvicorn; .*quire\[engine,router\]"):
        require_extra("engine", "router")


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ("--replicas 0", "--replicas must be at least 1, not 0"),
        ("--port 70000", "--port must be in [0, 65535], not 70000"),
        ("--max-model-len 0", "max_model_len must be at least 1"),
        ("--api-key-file /no/such/file", "no such file: /no/such/file"),
        ("a --model b", "two different models: a and --model b"),
        ("--max-model-length 3", "did you mean --max-model-len?"),
        ("--replica 3", "did you mean --replicas?"),
    ],
)
def test_a_wrong_value_stops_serve_before_anything_starts(
    arguments: str, needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("serve", *arguments.split()) == 2

    message = capsys.readouterr().err
    assert needle in message
    assert message.count("\n") == 1


def test_a_taken_port_stops_serve_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_main("serve", "--host", "127.0.0.1", "--port", str(port)) == 2

    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def deploy(*arguments: str) -> tuple[Deployment, argparse.Namespace]:
    namespace = serve.make_parser("quire serve").parse_args(arguments)
    return serve.make_deployment(namespace, "0.0.0.0", 8000, Path("/run/quire")), namespace


def test_flags_reach_the_process_that_knows_them() -> None:
    deployment, _ = deploy(
        *("org/model", "--max-model-len", "8k", "--dtype", "float32", "--replicas", "2"),
        *("--no-enable-prefix-caching", "--shutdown-timeout", "7", "--api-key", "a", "b"),
        *("--routing-policy", "least-requests", "--hang-timeout-s", "9"),
    )

    engine, router = deployment.engine_command(1), deployment.router_command()
    assert engine[1:4] == ("-m", "quire_engine", "--uds=/run/quire/engine-1.sock")
    for flag in ("--model=org/model", "--max-model-len=8192", "--dtype=float32"):
        assert flag in engine
        assert flag not in router
    assert {"--log-level=warning"} <= set(engine) & set(router)
    assert {"--no-enable-prefix-caching", "--hang-timeout-s=9.0"} <= set(engine)
    assert {"--api-key=a", "--api-key=b", "--routing-policy=least-requests"} <= set(router)
    assert "--api-key=a" not in engine
    assert "--shutdown-timeout=7.0" in engine
    assert "--shutdown-timeout=7.0" in router
    replicas = [flag for flag in router if flag.startswith("--replicas=")]
    assert replicas == [f"--replicas=unix:/run/quire/engine-{number}.sock" for number in (0, 1)]
    assert {"--host=0.0.0.0", "--port=8000"} <= set(router)


@pytest.mark.parametrize("flag", ["--replicas", "--data-parallel-size", "-dp"])
def test_replicas_has_the_names_of_vllm_too(flag: str) -> None:
    assert deploy(flag, "3")[0].num_replicas == 3


@pytest.mark.parametrize(
    ("arguments", "ports"), [((), [0, 0]), (("--metrics-port", "9464"), [9464, 9465])]
)
def test_metrics_ports_do_not_collide(arguments: tuple[str, ...], ports: list[int]) -> None:
    deployment, _ = deploy(*arguments)

    commands = [deployment.engine_command(number) for number in (0, 1)]
    assert [f"--metrics-port={port}" for port in ports] == [command[4] for command in commands]


def test_metrics_can_be_off() -> None:
    deployment, _ = deploy("--metrics-port", "-1")
    assert "--metrics-port=-1" in deployment.engine_command(1)


def test_replicas_share_the_cores_unless_told_otherwise() -> None:
    one, two = deploy()[0], deploy("--replicas", "1000")[0]

    assert one.engine_environment(0, {}) == {}
    assert two.engine_environment(1, {}) == {"OMP_NUM_THREADS": "1"}
    assert two.engine_environment(1, {"OMP_NUM_THREADS": "8"}) == {}


def test_the_banner_is_a_request_ready_to_send() -> None:
    open_, locked = deploy()[0], deploy("--api-key", "secret")[0]

    banner = open_.banner("org/model", 1.25)
    assert "http://localhost:8000/v1\n" in banner
    assert "\ncurl http://localhost:8000/v1/chat/completions -H " in banner
    assert '"model": "org/model"' in banner
    assert "Authorization" not in banner
    assert '-H "Authorization: Bearer $QUIRE_API_KEY"' in locked.banner("m", 1)
    assert "secret" not in locked.banner("m", 1)


def test_every_option_of_every_process_is_a_flag_of_serve() -> None:
    parser = serve.make_parser("quire serve")
    types: tuple[type, ...] = (EngineConfig, ServerConfig, RouterConfig)
    names = {name for type_ in types for name in option_names(type_)}

    flags = {action.dest for action in parser._actions}
    assert names - flags == {"uds", "replicas"}


def test_a_replica_is_up_when_the_routers_metric_says_so() -> None:
    text = (
        "# TYPE quire_router_replica_up gauge\n"
        'quire_router_replica_up{replica="unix:/run/engine-0.sock"} 1.0\n'
        'quire_router_replica_up{replica="unix:/run/engine-1.sock"} 0.0\n'
    )
    up = [is_replica_up(text, f"unix:/run/engine-{number}.sock") for number in (0, 1, 2)]
    assert up == [True, False, False]
