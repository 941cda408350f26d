"""`quire plan MODEL`: which GPUs hold a model, and how much they then cache. Needs no GPU."""

import argparse
import json
import sys
from collections.abc import Sequence

from quire_engine.flags import Parser, add_model, add_options

DOES_NOT_FIT = 1


def run(prog: str, arguments: Sequence[str]) -> int:
    """Print the plan; return 0, or 1 where nothing that was asked about fits."""
    from quire.plan_report import json_report, node_report, text_report
    from quire.planning import PlanConfig, find_model, judge_nodes, plan_rows
    from quire_engine.errors import ConfigError
    from quire_operator.capacity import CapacityError

    parser = Parser(
        prog,
        "Say whether a model fits on GPUs, where their memory would go, and how many tokens they "
        "would cache. MODEL is a directory, a .gguf file, a name on the hub, or a size as 8B.",
        usage="[MODEL] [options]",
        epilog=f"examples: {prog} 70B --gpu H200 --tp 2; "
        f"kubectl get nodes -o json | {prog} 70B --tp 4 --nodes -",
    )
    add_model(parser)
    _add_tensor_parallel(parser)
    add_options(parser, PlanConfig, exclude=("tensor_parallel_size",))
    namespace = parser.parse_args(arguments)
    config = parser.build(PlanConfig, namespace, errors=(ConfigError, CapacityError))
    try:
        model = find_model(getattr(namespace, "model", ""), config)
        fit = judge_nodes(model, config) if config.nodes is not None else None
        rows = [] if fit is not None else plan_rows(model, config)
    except (ConfigError, CapacityError) as error:
        parser.error(str(error))
    if config.json:
        sys.stdout.write(json.dumps(json_report(model, rows, fit), indent=2) + "\n")
    elif fit is not None:
        sys.stdout.write(node_report(model, fit))
    else:
        sys.stdout.write(text_report(model, rows, config))
    fits = fit.fits if fit is not None else any(row.memory.fits for row in rows)
    return 0 if fits else DOES_NOT_FIT


def _add_tensor_parallel(parser: Parser) -> None:
    parser.add_argument(
        "--tensor-parallel-size",
        "--tp",
        "-tp",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="GPUs that share each layer; default: the smallest number that fits",
    )
