"""Become a program that cannot outlive its parent: `python -m quire.launcher PARENT_PID PROGRAM`.

The kernel kills a process that asked for it (PR_SET_PDEATHSIG) when its parent ends, even by
SIGKILL, and the wish survives exec. Asking between fork and exec would run Python in a forked copy
of a threaded process; asking from here is safe. Other systems than Linux go without.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask to be killed when the parent ends; end at once when it already has."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def main() -> None:
    """Become the given program."""
    parent_pid, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
