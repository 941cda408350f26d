"""The process that keeps a cluster: the first one of its namespaces, and the parent of all others.

Its owner starts it with `unshare` and holds the other end of a socket. When the owner closes that
end, in whatever way it dies, the cluster is taken down; when this process itself is killed, the
kernel ends every process in its namespaces and drops their mounts and networks.
"""

import json
import os
import queue
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from local_cluster import cgroups, network
from local_cluster.addresses import API_URL, CONTROL_IP, node_name
from local_cluster.archive import write_image_archive
from local_cluster.control_plane import GO_ENVIRONMENT, ControlPlane, base_objects
from local_cluster.errors import ClusterError
from local_cluster.identity import Identities, create_identities, read_token
from local_cluster.node import PAUSE_IMAGE, Node
from local_cluster.processes import Processes, run_command
from local_cluster.tools import Tools

START_LIMIT_S = 300
LEADERS = ("controller", "scheduler")
"""Where several run, these end when they cannot renew their Lease and start anew, without what they
remember: a controller manager that slept through an outage would hold every node for lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a cluster is made from; travels to the daemon as JSON."""

    folder: str
    num_nodes: int
    tools: str
    layers: str
    """Folder of the nodes' image layers, which no other cluster uses at the same time."""
    registry_data: str
    kept_images: str
    """File with the names of the images that stay in `layers`, one a line."""


class Daemon:
    """Starts, serves and takes down one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folder = Path(layout.folder)
        self._tools = Tools(folder=Path(layout.tools))
        self._processes = Processes(self._folder / "log")
        self._commands: dict[str, list[str]] = {}
        self._nodes: dict[str, Node] = {}

    def start(self) -> None:
        """Bring everything up, and return when every node is Ready."""
        names = [node_name(index) for index in range(1, self._layout.num_nodes + 1)]
        network.create_network(len(names))
        identities = create_identities(self._folder / "pki", names)
        plane = ControlPlane(
            tools=self._tools,
            identities=identities,
            folder=self._folder,
            registry_data=Path(self._layout.registry_data),
        )
        self._commands = plane.commands()
        for name in ("etcd", "apiserver", "registry"):
            self.start_component(name)
        self._prepare_nodes(identities)
        for name in self._nodes:
            self.start_node(name)
        self._wait("the API server", self._is_api_ready, "etcd", "apiserver")
        for name in (*LEADERS, "coredns"):
            self.start_component(name)
        kubeconfig = f"--kubeconfig={identities.kubeconfig('admin')}"
        objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": base_objects()})
        kubectl = [str(self._tools.kubernetes), "kubectl", kubeconfig]
        run_command([*kubectl, "create", "--validate=false", "-f", "-"], stdin=objects)
        (self._folder / "api-ready").touch()
        self._wait("the nodes", self._are_nodes_ready, *self._nodes)

    def start_component(self, name: str) -> None:
        """Start one component of the control plane."""
        self._processes.start(name, self._commands[name], environment=GO_ENVIRONMENT)

    def stop_api_server(self) -> None:
        """Kill the API server, and with it what cannot lead without it."""
        # Asked to stop, it would serve its watches for another minute.
        for name in ("apiserver", *LEADERS):
            self._processes.stop(name, with_signal=signal.SIGKILL)

    def start_api_server(self) -> None:
        """Start the API server, and return when it answers."""
        self.start_component("apiserver")
        self._wait("the API server", self._is_api_ready, "apiserver")
        for name in LEADERS:
            self.start_component(name)

    def start_node(self, name: str) -> None:
        """Start a node; it becomes Ready some seconds later."""
        node = self._nodes[name]
        network.set_connected(node.index, connected=True)
        self._processes.start(name, node.command())
        self._route_services()

    def crash_node(self, name: str) -> None:
        """Kill everything on a node at once and pull its cable."""
        network.set_connected(self._nodes[name].index, connected=False)
        self._processes.kill_namespace(name)
        self._route_services()

    def take_down(self) -> None:
        """End every process and remove every file and cgroup; namespaces end with this process."""
        for name in self._nodes:
            if self._processes.is_running(name):
                self._processes.kill_namespace(name)
        for name in self._commands:
            if self._processes.is_running(name):
                self._processes.stop(name, with_signal=signal.SIGKILL)
        cgroups.remove_cgroup(self._folder.name)
        rmtree(self._folder)

    def _prepare_nodes(self, identities: Identities) -> None:
        pause = self._folder / "pause.tar"
        write_image_archive(pause, PAUSE_IMAGE, self._tools.pause)
        resolv_conf = self._folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {CONTROL_IP}\n")
        for index in range(1, self._layout.num_nodes + 1):
            name = node_name(index)
            cgroup = f"{self._folder.name}/{name}"
            cgroups.create_cgroup(cgroup)
            node = Node(
                index=index,
                tools=self._tools,
                identities=identities,
                folder=self._folder / name,
                layers=Path(self._layout.layers) / name,
                cgroup=cgroup,
                api_ready=self._folder / "api-ready",
            )
            node.prepare(pause, resolv_conf, Path(self._layout.kept_images))
            self._nodes[name] = node

    def _route_services(self) -> None:
        running = [node for name, node in self._nodes.items() if self._processes.is_running(name)]
        if running:
            network.route_services(running[0].index)

    def _is_api_ready(self) -> bool:
        try:
            return self._get("/readyz") == b"ok"
        except (OSError, urllib.error.URLError):
            return False

    def _are_nodes_ready(self) -> bool:
        nodes = json.loads(self._get("/api/v1/nodes"))["items"]
        ready = [
            node["metadata"]["name"]
            for node in nodes
            for condition in node["status"].get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        return set(self._nodes) <= set(ready)

    def _get(self, path: str) -> bytes:
        pki = self._folder / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        token = read_token(pki / "admin.kubeconfig")
        request = urllib.request.Request(API_URL + path)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            content: bytes = response.read()
        return content

    def _wait(self, what: str, is_ready: Callable[[], bool], *needed: str) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not is_ready():
            for name in needed:
                self._processes.check(name)
            if time.monotonic() > deadline:
                logs = self._folder / "log"
                raise ClusterError(f"{what} not ready after {START_LIMIT_S} s; see {logs}")
            time.sleep(0.1)


class _TerminatedError(Exception):
    """The owner has gone, or somebody wants this process to end."""


def main() -> None:
    """Serve the cluster that the arguments describe until the owner hangs up."""
    owner = socket.socket(fileno=int(sys.argv[1]))
    layout = Layout(**json.loads(sys.argv[2]))
    run_command(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    requests: queue.Queue[dict[str, str]] = queue.Queue()
    threading.Thread(target=_receive, args=(owner, requests), daemon=True).start()
    daemon = Daemon(layout)
    try:
        _serve(daemon, owner, requests)
    except (_TerminatedError, BrokenPipeError):
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        daemon.take_down()


def _serve(daemon: Daemon, owner: socket.socket, requests: "queue.Queue[dict[str, str]]") -> None:
    try:
        daemon.start()
    except ClusterError as error:
        _answer(owner, {"error": str(error)})
        return
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(owner, [b'{"ok": true}\n'], [namespace])
    operations: dict[str, Callable[[str], None]] = {
        "start-component": daemon.start_component,
        "stop-api-server": lambda _: daemon.stop_api_server(),
        "start-api-server": lambda _: daemon.start_api_server(),
        "start-node": daemon.start_node,
        "crash-node": daemon.crash_node,
    }
    while True:
        request = requests.get()
        try:
            operations[request["do"]](request["name"])
        except ClusterError as error:
            _answer(owner, {"error": str(error)})
        else:
            _answer(owner, {"ok": True})


def _answer(owner: socket.socket, message: dict[str, object]) -> None:
    owner.sendall(json.dumps(message).encode() + b"\n")


def _receive(owner: socket.socket, requests: "queue.Queue[dict[str, str]]") -> None:
    with suppress(OSError), owner.makefile() as lines:
        for line in lines:
            requests.put(json.loads(line))
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate(_number: int, _frame: object) -> None:
    raise _TerminatedError


if __name__ == "__main__":
    main()
