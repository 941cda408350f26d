import argparse
from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_engine.config import CacheConfig, EngineConfig, option
from quire_engine.errors import ConfigError
from quire_engine.flags import (
    Parser,
    add_model,
    add_options,
    arguments_from,
    option_names,
    options_from,
    parse_size,
)
from quire_engine.peer_flags import PEER_FLAGS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """A flat configuration."""

    replicas: tuple[str, ...] = option((), "where engines are")
    threads: int = option(2, "threads; 100% of them")
    max_body_bytes: int = option(1024, "largest body")

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}")


def make_parser() -> Parser:
    parser = Parser("quire engine", "Serve.", usage="[MODEL] [options]")
    add_model(parser)
    add_options(parser, EngineConfig)
    return parser


def parse(*arguments: str) -> dict[str, Any]:
    return options_from(make_parser().parse_args(arguments), EngineConfig)


def refuse(capsys: pytest.CaptureFixture[str], parser: Parser, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parser.build(EngineConfig, parser.parse_args(arguments))

    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("some/model", {"model": "some/model"}),
        ("--model some/model", {"model": "some/model"}),
        ("--model m m", {"model": "m"}),
        ("--dtype float32 m", {"dtype": "float32", "model": "m"}),
        ("--max-model-len 8192", {"max_model_len": 8192}),
        ("--max_model_len 8k", {"max_model_len": 8192}),
        ("--max_model_len=1.5K", {"max_model_len": 1536}),
        ("--max-model-len auto", {"max_model_len": None}),
        ("--max-model-len -1", {"max_model_len": None}),
        ("--kv-cache-memory-bytes 4G", {"kv_cache_memory_bytes": 4 << 30}),
        ("--kv-cache-memory-bytes 1.5GiB", {"kv_cache_memory_bytes": 3 << 29}),
        ("--kv-cache-memory-bytes 512mb", {"kv_cache_memory_bytes": 512 << 20}),
        ("--enable-prefix-caching", {"enable_prefix_caching": True}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--no_enable_prefix_caching", {"enable_prefix_caching": False}),
        ("-tp 2", {"tensor_parallel_size": 2}),
        ("-tp=2", {"tensor_parallel_size": 2}),
        ('--hf-overrides {"a":[1]}', {"hf_overrides": {"a": [1]}}),
        ("--block-size 32", {"block_size": 32}),
        ("--gpu-memory-utilization 0.5", {"gpu_memory_utilization": 0.5}),
        ("--served-model-name a b", {"served_model_name": ("a", "b")}),
    ],
)
def test_a_flag_sets_its_field(arguments: str, expected: dict[str, Any]) -> None:
    assert parse(*arguments.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ("--max-model-length 3", ["unknown flag: --max-model-length", "--max-model-len?"]),
        ("--no-such-flag", ["unknown flag: --no-such-flag"]),
        ("--no-such-flag=3", ["unknown flag: --no-such-flag;"]),
        ("--max-model", ["unknown flag: --max-model;"]),
        ("-z 1", ["unknown flag: -z"]),
        ("one two", ["unexpected argument: two"]),
        ("one --model two", ["two different models: one and --model two"]),
        ("--dtype int3", ["--dtype", "int3", "bfloat16"]),
        ("--block-size 17", ["--block-size", "17", "256"]),
        ("--max-model-len many", ["--max-model-len", "not a size", "'many'"]),
        ("--max-model-len 0.3", ["--max-model-len", "not a whole number: '0.3'"]),
        ("--max-model-len 0", ["max_model_len must be at least 1, not 0"]),
        ("--max-model-len", ["--max-model-len", "expected one argument"]),
        ("--watermark 3", ["watermark must be in [0, 1), not 3.0"]),
        ("--hf-overrides {", ["--hf-overrides", "not JSON"]),
        ("--hf-overrides 3", ["--hf-overrides", "not a JSON object: '3'"]),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], arguments: str, needles: list[str]
) -> None:
    message = refuse(capsys, make_parser(), *arguments.split())

    assert message.startswith("quire engine: error: ")
    assert [needle for needle in needles if needle not in message] == []


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ("--swap-space 4 m", ["--swap-space"]),
        ("--swap-space=4 m", ["--swap-space"]),
        ("--swap_space 4 m", ["--swap-space"]),
        ("--disable-log-requests m", ["--disable-log-requests"]),
        ("m --trust-remote-code", ["--trust-remote-code"]),
        ("--lora-modules a=b c=d --model m", ["--lora-modules"]),
        ("m --enable-chunked-prefill --num-scheduler-steps 8", ["--enable-chunked-prefill"]),
        ("m --no-enable-chunked-prefill", ["--no-enable-chunked-prefill"]),
        ("m --compilation-config.mode 3", ["--compilation-config"]),
        ('m --compilation-config {"mode":3}', ["--compilation-config"]),
        ("m -sc x -O 3 -pp 2", ["-sc", "-O", "-pp"]),
        ("m --guided-decoding-backend --swap-space 3", ["--guided-decoding-backend"]),
        ("m --max-cpu-loras -1", ["--max-cpu-loras"]),
    ],
)
def test_a_flag_of_vllms_is_skipped_with_its_values_and_a_warning(
    capsys: pytest.CaptureFixture[str], arguments: str, warned: list[str]
) -> None:
    assert parse(*arguments.split()) == {"model": "m"}

    message = capsys.readouterr().err
    for name in warned:
        assert f"quire engine: warning: {name} is a flag of vLLM" in message


def test_dropped_names_of_vllm_are_known() -> None:
    dropped = "--swap-space --disable-log-requests --guided-decoding-backend"
    dropped += " --num-scheduler-steps --use-v2-block-manager"
    assert set(dropped.split()) <= set(PEER_FLAGS)


def test_no_flag_of_ours_is_only_warned_about() -> None:
    ours = {f"--{name.replace('_', '-')}" for name in option_names(EngineConfig)}
    assert ours & set(PEER_FLAGS) == set()


def test_a_tuple_gathers_values_over_repeated_flags() -> None:
    parser = Parser("quire router")
    add_options(parser, GatewayConfig)

    namespace = parser.parse_args(["--replicas", "a:1", "b:2", "--replicas=c:3"])

    assert parser.build(GatewayConfig, namespace).replicas == ("a:1", "b:2", "c:3")


def test_excluded_options_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("quire serve")
    add_options(parser, EngineConfig, exclude=["dtype"])

    assert "unknown flag: --dtype" in refuse(capsys, parser, "--dtype", "auto")


def test_help_shows_groups_choices_and_defaults() -> None:
    parser = make_parser()
    add_options(parser, GatewayConfig)
    text = " ".join(parser.format_help().split())

    assert "usage: quire engine [MODEL] [options]" in text
    assert "cache: Shape of the paged KV cache." in text
    assert "--block-size {16,32,64,128,256}" in text
    assert "sharing (default: 16)" in text
    assert "--tensor-parallel-size" in text
    assert "-tp SIZE" in text
    assert "100% of them (default: 2)" in text
    assert "seen before (default: on)" in text
    assert "default: False" not in text


def test_options_written_as_arguments_read_the_same() -> None:
    parser = make_parser()
    given_flags = ["m", "--max-model-len", "8k", "--no-enable-prefix-caching", "-tp", "2"]
    given_flags += ["--hf-overrides", '{"rope": {"a b": 1}}', "--enforce-eager"]
    namespace = parser.parse_args(given_flags)

    arguments = arguments_from(namespace, EngineConfig)

    assert parser.parse_args(arguments) == namespace
    assert "--no-enable-prefix-caching" in arguments


def test_config_of_no_flags_is_the_default() -> None:
    parser = make_parser()
    assert parser.build(EngineConfig, parser.parse_args([])) == EngineConfig()


def test_every_field_of_a_part_is_an_option() -> None:
    assert {item.name for item in fields(CacheConfig)} <= option_names(EngineConfig)


@given(st.integers(0, 2**50), st.sampled_from(["", "k", "K", "kB", "KiB", " M", "gib", "T"]))
def test_a_size_is_its_number_times_a_power_of_1024(number: int, unit: str) -> None:
    letter = unit.strip().lower()[:1]
    power = " kmgt".index(letter) if letter else 0
    assert parse_size(f"{number}{unit}") == number * 1024**power


@given(st.text(max_size=8))
def test_any_other_text_is_refused_as_a_size(text: str) -> None:
    try:
        value = parse_size(text)
    except argparse.ArgumentTypeError:
        return
    assert isinstance(value, int)
