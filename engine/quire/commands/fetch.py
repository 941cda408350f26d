"""`quire fetch MODEL`: download a model, once, for engines that start later or offline."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quire.extras import require_extra
from quire_engine.flags import Parser, add_options

FAILED = 1


def run(prog: str, arguments: Sequence[str]) -> int:
    """Download, or find that it is there; return the exit status."""
    require_extra("engine")
    from quire.fetching import FetchConfig, fetch, report
    from quire_engine.errors import ConfigError

    parser = Parser(
        prog,
        "Download a model from the hub and mark it complete: the next call, and engines with "
        "HF_HUB_OFFLINE=1, then need no hub.",
        usage="MODEL [options]",
        epilog=f"example: {prog} Qwen/Qwen3-8B --download-dir /models",
    )
    parser.add_argument(
        "model_tag",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="OWNER/REPOSITORY on the hub, or OWNER/REPOSITORY:FILE.gguf",
    )
    add_options(parser, FetchConfig)
    config = parser.build(FetchConfig, parser.parse_args(arguments))
    try:
        fetched = fetch(config)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return FAILED
    if config.report is not None:
        Path(config.report).write_text(report(fetched))
    size = f"{fetched.num_bytes / 2**30:.2f} GiB"
    state = "is there already" if fetched.was_there else "is downloaded"
    sys.stdout.write(f"{config.model} {state}: {size} in {fetched.path}\n")
    return 0
