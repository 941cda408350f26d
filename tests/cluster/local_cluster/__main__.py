"""`python -m local_cluster tools|up|demo`: install the tools, run a cluster, show Quire on one."""

import signal
import sys
import threading
import time

from local_cluster.cluster import start_cluster
from local_cluster.errors import ClusterError
from local_cluster.tools import install_tools


def main() -> int:
    """Run the command that the arguments name and return the exit status."""
    commands = {"tools": _tools, "up": _up, "demo": _demo}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        _say(f"usage: python -m local_cluster {'|'.join(commands)}")
        return 2
    try:
        commands[sys.argv[1]]()
    except ClusterError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _tools() -> None:
    tools = install_tools()
    _say(f"cluster-tools: ready in {tools.folder}")


def _up() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    started_at = time.monotonic()
    with start_cluster() as cluster:
        _say(f"two nodes are Ready after {time.monotonic() - started_at:.0f} s; Ctrl-C ends them\n")
        _say(f"  export KUBECONFIG={cluster.kubeconfig}")
        _say("  kubectl get nodes")
        stop.wait()


def _demo() -> None:
    # Only the demo needs what builds images and talks to models.
    from local_cluster.demo import run_demo

    run_demo()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
