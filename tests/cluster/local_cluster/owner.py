"""The owner's side of a cluster: starts the daemon, asks things of it, and lets it go."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from local_cluster.cgroups import remove_cgroup
from local_cluster.daemon import Layout
from local_cluster.errors import ClusterError
from local_cluster.tools import cache_folder, find_tools

PREFIX = "quire-cluster-"
LOCK = "lock"
MAX_REGISTRY_BYTES = 12 * 10**9


@dataclass(frozen=True, kw_only=True)
class Owned:
    """A running cluster, and the way to its daemon."""

    folder: Path
    network: int
    """File descriptor of the control plane's network namespace."""
    _channel: socket.socket

    def ask(self, operation: str, name: str = "") -> None:
        """Have the daemon do something, and wait until it is done.

        Raises:
            ClusterError: with the daemon's reason, when it cannot.
        """
        self._channel.sendall(json.dumps({"do": operation, "name": name}).encode() + b"\n")
        _read_answer(self._channel.recv(1 << 16).decode())


@contextmanager
def own_cluster(num_nodes: int) -> Iterator[Owned]:
    """Run a cluster of `num_nodes` nodes; every trace of it is gone afterwards.

    Raises:
        ToolsMissingError: when this machine lacks what a cluster needs.
        ClusterError: when it does not start.
    """
    tools = find_tools()
    sweep()
    cache = cache_folder()
    kept_images = cache / "kept-images"
    kept_images.touch()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (
        (folder / LOCK).open("w") as lock,
        # The first slot is for whoever has nodes to keep layers on.
        _free_slot(cache / "layers" if num_nodes else folder) as (layers, slot),
        _registry(cache / "registry") as registry,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        layout = Layout(
            folder=str(folder),
            num_nodes=num_nodes,
            tools=str(tools.folder),
            layers=str(layers),
            registry_data=str(registry),
            kept_images=str(kept_images),
        )
        near, far = socket.socketpair()
        # Both locks live on in the daemon, should this process be killed.
        daemon = _start_daemon(layout, far, [lock.fileno(), slot])
        far.close()
        network = -1
        try:
            owned = _greet(folder, near)
            network = owned.network
            yield owned
        finally:
            # Hanging up is the word to go.
            near.shutdown(socket.SHUT_RDWR)
            near.close()
            _wait_for_end(daemon)
            if network >= 0:
                os.close(network)
            _remove(folder)


def sweep() -> None:
    """Remove what clusters left whose daemon was killed."""
    _sweep_slots(cache_folder() / "layers")
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError), (folder / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(folder)


def _start_daemon(
    layout: Layout, channel: socket.socket, locks: list[int]
) -> "subprocess.Popen[bytes]":
    spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    arguments = [str(channel.fileno()), json.dumps(asdict(layout))]
    # A session of its own: Ctrl-C is for the owner, which then hangs up in its own time.
    return subprocess.Popen(
        [
            "unshare",
            *spaces,
            "--mount-proc",
            sys.executable,
            "-m",
            "local_cluster.daemon",
            *arguments,
        ],
        pass_fds=[channel.fileno(), *locks],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def _wait_for_end(daemon: "subprocess.Popen[bytes]") -> None:
    try:
        daemon.wait(timeout=90)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _greet(folder: Path, channel: socket.socket) -> Owned:
    greeting, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
    _read_answer(greeting.decode())
    return Owned(folder=folder, network=descriptors[0], _channel=channel)


def _read_answer(line: str) -> None:
    if not line:
        raise ClusterError("the cluster's daemon ended; its last words are above")
    answer = json.loads(line)
    if "error" in answer:
        raise ClusterError(answer["error"])


@contextmanager
def _free_slot(folder: Path) -> Iterator[tuple[Path, int]]:
    """Take the first folder of image layers that no other cluster is using.

    Only the first is kept for later: clusters side by side are rare, and layers are large.
    """
    for number in count(1):
        slot = folder / str(number)
        with _try_lock(slot) as lock:
            if lock is None:
                continue
            slot.mkdir(exist_ok=True)
            yield slot, lock
            if number > 1:
                shutil.rmtree(slot)
            return


@contextmanager
def _registry(folder: Path) -> Iterator[Path]:
    """Yield the registry's data, emptied when it has grown large and nobody else uses it."""
    with folder.with_suffix(".users").open("w") as users:
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files = (path for path in folder.rglob("*") if path.is_file())
            if sum(path.stat().st_size for path in files) > MAX_REGISTRY_BYTES:
                shutil.rmtree(folder)
        fcntl.flock(users, fcntl.LOCK_SH)
        yield folder


def _sweep_slots(folder: Path) -> None:
    for slot in folder.glob("[0-9]"):
        with _try_lock(slot) as lock:
            if lock is not None and slot.name != "1":
                shutil.rmtree(slot, ignore_errors=True)


@contextmanager
def _try_lock(slot: Path) -> Iterator[int | None]:
    """Yield the descriptor of a slot's lock, or None when another process holds it."""
    slot.parent.mkdir(parents=True, exist_ok=True)
    # Beside the slot and never removed: a lock on a removed file keeps nobody out.
    with slot.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock.fileno()


def _remove(folder: Path) -> None:
    remove_cgroup(folder.name)
    shutil.rmtree(folder, ignore_errors=True)
