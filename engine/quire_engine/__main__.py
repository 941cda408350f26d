"""`python -m quire_engine [MODEL]`: serve one engine over gRPC."""

import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m quire_engine") -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    # Not above: it takes a moment, in which Ctrl-C is to end the process without a traceback.
    from quire_engine.server.program import serve

    return serve(argv, prog=prog)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
