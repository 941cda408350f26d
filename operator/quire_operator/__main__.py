"""`python -m quire_operator`: the operator process."""

import os
import signal
import sys


def run() -> int:
    """Run the operator; one that is told to stop while it still loads ends at once.

    The kernel drops signals that the first process of a container has no handler for, so that it
    would be waited for, and killed in the end. It ends without unwinding, since modules written in
    C do not all survive an exception while they load.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from quire_operator.command import main

    return main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(run())
