"""`quire engine [MODEL]`: one engine, the same as `python -m quire_engine`."""

from collections.abc import Sequence

from quire.extras import require_extra


def run(prog: str, arguments: Sequence[str]) -> int:
    """Serve gRPC until SIGTERM; return the exit status."""
    require_extra("engine")
    from quire_engine.__main__ import main

    return main(arguments, prog=prog)
