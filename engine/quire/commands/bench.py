"""`quire bench ...`: finds the measurement and hands it its flags."""

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from quire.cli import help_text, refuse_command
from quire.extras import MissingExtraError, require_extra, require_llm
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError, InvalidRequestError
from quire_engine.flags import Parser, add_model, add_options, option_names, options_from

MEASUREMENTS = {
    "latency": "seconds for one batch, in this process",
    "throughput": "tokens a second for many prompts, in this process",
    "serve": "what clients of a running server see: TTFT, TPOT, ITL, throughput",
    "metrics": "what metrics cost: a scrape of a large router, and steps with and without",
    "compare": "prefill and decode speed next to transformers, and what a cached prefix saves",
}


def run(prog: str, arguments: Sequence[str]) -> int:
    """Run one measurement; return the exit status."""
    name, *rest = list(arguments) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(help_text(prog, "Measure Quire.", MEASUREMENTS))
        return 0
    commands = {
        "serve": run_serve,
        "latency": run_latency,
        "throughput": run_throughput,
        "metrics": run_metrics,
        "compare": run_compare,
    }
    if name not in commands:
        return refuse_command(prog, name, MEASUREMENTS)
    return commands[name](f"{prog} {name}", rest)


def run_serve(prog: str, arguments: Sequence[str]) -> int:
    """Measure a server over HTTP."""
    from quire.bench.options import (
        DatasetConfig,
        LoadConfig,
        ReportConfig,
        RequestConfig,
        TargetConfig,
    )
    from quire.bench.serve import ServeBench
    from quire.bench.tokenizing import TokenCountError
    from quire.openai_client import ServerError

    parser = Parser(prog, "Measure a running server as its clients see it.")
    for type_ in (TargetConfig, DatasetConfig, LoadConfig, RequestConfig, ReportConfig):
        add_options(parser, type_)
    namespace = parser.parse_args(arguments)
    target = parser.build(TargetConfig, namespace)
    environment = os.environ.get("QUIRE_API_KEY", "").split(",")[0]
    bench = ServeBench(
        target=target,
        dataset=parser.build(DatasetConfig, namespace),
        load=parser.build(LoadConfig, namespace),
        request=parser.build(RequestConfig, namespace),
        report=parser.build(ReportConfig, namespace),
        api_key=target.api_key or environment or os.environ.get("OPENAI_API_KEY", ""),
    )
    try:
        return asyncio.run(bench.run())
    except ConfigError as error:
        parser.error(str(error))
    except (ServerError, TokenCountError) as error:
        parser.exit(1, f"{prog}: error: {error}\n")


def run_latency(prog: str, arguments: Sequence[str]) -> int:
    """Measure the latency of one batch, or compare engines with `--compare transformers`."""
    compared, rest = _take_compare(arguments)
    if compared:
        return run_compare(prog, rest)
    require_llm()
    from quire.bench.offline import LatencyConfig, measure_latency

    parser = _engine_parser(
        prog,
        "Measure how long one batch takes in this process. Prefix caching is off unless asked for. "
        "`--compare transformers` is `quire bench compare`.",
    )
    add_options(parser, LatencyConfig)
    namespace = parser.parse_args(arguments)
    config = parser.build(LatencyConfig, namespace)
    return _measure(parser, lambda: measure_latency(_engine_options(parser, namespace), config))


def run_throughput(prog: str, arguments: Sequence[str]) -> int:
    """Measure tokens a second over many prompts."""
    require_llm()
    from quire.bench.offline import ThroughputConfig, measure_throughput
    from quire.bench.options import DatasetConfig

    parser = _engine_parser(prog, "Measure how many tokens a second the engine computes.")
    parser.add_argument("--backend", choices=("vllm", "quire"), help="accepted as vLLM's flag")
    add_options(parser, DatasetConfig, exclude=option_names(EngineConfig))
    add_options(parser, ThroughputConfig)
    namespace = parser.parse_args(arguments)
    dataset = parser.build(DatasetConfig, namespace)
    config = parser.build(ThroughputConfig, namespace)
    options = _engine_options(parser, namespace)
    return _measure(parser, lambda: measure_throughput(options, dataset, config))


def run_compare(prog: str, arguments: Sequence[str]) -> int:
    """Measure Quire and transformers on the same model."""
    require_llm()
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("not installed: transformers; run: pip install transformers")
    from quire.bench.compare import CompareConfig
    from quire.bench.comparing import run_comparison

    parser = _engine_parser(
        prog,
        "Measure prefill and decode of Quire and of transformers' generate, in turns, and what a "
        "cached prefix saves. --dtype is bfloat16 unless given.",
    )
    add_options(parser, CompareConfig)
    namespace = parser.parse_args(arguments)
    config = parser.build(CompareConfig, namespace)
    options = {"dtype": "bfloat16", **_engine_options(parser, namespace)}
    return _measure(parser, lambda: run_comparison(options, config))


def run_metrics(prog: str, arguments: Sequence[str]) -> int:
    """Measure what metrics cost."""
    require_extra("engine")
    require_extra("router")
    from quire.bench.metrics_cost import MetricsCostConfig, measure_cost
    from quire.bench.offline import write_json

    parser = _engine_parser(
        prog,
        "Measure the scrape of a router with many replicas, and the steps of an engine with every "
        "metric on next to none, in turns.",
    )
    add_options(parser, MetricsCostConfig)
    namespace = parser.parse_args(arguments)
    engine = parser.build(EngineConfig, namespace)
    config = parser.build(MetricsCostConfig, namespace)

    def measure() -> None:
        cost = asyncio.run(measure_cost(engine, config))
        write_json(config.output_json, cost.to_json())

    return _measure(parser, measure)


def _engine_parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description, usage="[MODEL] [options]")
    add_model(parser)
    add_options(parser, EngineConfig)
    return parser


def _engine_options(parser: Parser, namespace: argparse.Namespace) -> dict[str, Any]:
    parser.build(EngineConfig, namespace)
    return options_from(namespace, EngineConfig)


def _measure(parser: Parser, measure: Callable[[], object]) -> int:
    try:
        measure()
    except (ConfigError, InvalidRequestError) as error:
        parser.error(str(error))
    return 0


def _take_compare(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Take `--compare transformers` (or `--compare=transformers`) out of the arguments."""
    rest = [item for item in arguments if item != "--compare=transformers"]
    if "--compare" not in rest:
        return len(rest) < len(arguments), rest
    at = rest.index("--compare")
    num_taken = 2 if rest[at + 1 : at + 2] == ["transformers"] else 1
    return True, rest[:at] + rest[at + num_taken :]
