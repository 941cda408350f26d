"""What each program of a cluster has computed, to tell who is the bottleneck of a measurement."""

import os
from collections import Counter, defaultdict
from pathlib import Path

_MS_PER_TICK = 1000 // os.sysconf("SC_CLK_TCK")


def cpu_milliseconds() -> Counter[str]:
    """Return the CPU time of everything that this process started, by program."""
    children, times = defaultdict[int, list[int]](list), dict[int, int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children[int(fields[1])].append(int(folder.name))
        times[int(folder.name)] = (int(fields[11]) + int(fields[12])) * _MS_PER_TICK
    found: Counter[str] = Counter()
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        waiting += children[pid]
        found[_program(pid)] += times.get(pid, 0)
    return found


def _program(pid: int) -> str:
    """Return a process's name: one binary holds all of Kubernetes, and an argument says which."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    name = Path(command[0]).name
    if name.startswith("kubernetes-"):
        return command[1]
    return command[2] if command[1:2] == ["-m"] else name
