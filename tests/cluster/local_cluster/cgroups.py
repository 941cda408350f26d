"""A cgroup of its own for each node, in either version of cgroups."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def create_cgroup(name: str) -> None:
    """Make cgroup `name` (a path below the root) with every controller that this machine has."""
    for hierarchy in _hierarchies():
        folder = hierarchy
        for part in name.split("/"):
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            _inherit(parent, folder)


def remove_cgroup(name: str) -> None:
    """Remove cgroup `name` and those in it; no process may be left in them."""
    for hierarchy in _hierarchies():
        top = hierarchy / name
        folders = [folder for folder in top.rglob("*") if folder.is_dir()]
        for folder in [*sorted(folders, reverse=True), top]:
            with suppress(FileNotFoundError):
                folder.rmdir()


def _hierarchies() -> Iterator[Path]:
    if (ROOT / "cgroup.controllers").exists():
        yield ROOT
    else:
        yield from (folder for folder in ROOT.iterdir() if (folder / "cgroup.procs").exists())


def _inherit(parent: Path, child: Path) -> None:
    # Version 1: a new cpuset is empty, and nothing may run in it.
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (child / name).exists() and (parent / name).exists():
            (child / name).write_text((parent / name).read_text())
    # Version 2: a controller reaches a child when its parent passes it on.
    if (parent / "cgroup.subtree_control").exists():
        for controller in (parent / "cgroup.controllers").read_text().split():
            with suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
