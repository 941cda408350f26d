"""A Kubernetes cluster as tests and people see it: local or anywhere, with the same calls."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from local_cluster.addresses import API_PORT, CONTROL_IP, REGISTRY_ADDRESS, node_name
from local_cluster.errors import ClusterError
from local_cluster.gpu_nodes import SimulatedNode
from local_cluster.identity import read_token, write_kubeconfig
from local_cluster.owner import Owned, own_cluster
from local_cluster.processes import run_command
from local_cluster.reader import Reader
from local_cluster.tools import cache_folder
from local_cluster.tunnel import Tunnel, listen_inside

Manifest = dict[str, Any]

PATIENCE_S = 180.0
"""Longer than what a cluster does at once takes on a machine that is slow or busy."""


class Cluster:
    """Any cluster that a kubeconfig names."""

    is_local: bool = False
    """Whether nodes can be crashed, the API server stopped and images pushed by this process."""

    def __init__(self, kubeconfig: Path, kubectl: Sequence[str]) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = [*kubectl, f"--kubeconfig={kubeconfig}"]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it printed.

        Raises:
            CommandError: with kubectl's message.
        """
        return run_command([*self._kubectl, *arguments], stdin=stdin)

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        """Apply objects from the server's side, as kubectl does."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        options = ["--server-side", "--force-conflicts", f"--namespace={namespace}"]
        self.kubectl("apply", *options, "-f", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str = "", *, namespace: str = "default") -> Manifest:
        """Return one object, or the list of all of a kind when `name` is empty."""
        named = [name] if name else []
        output = self.kubectl("get", kind, *named, f"--namespace={namespace}", "--output=json")
        found: Manifest = json.loads(output)
        return found

    def items(self, kind: str, *, namespace: str = "default", selector: str = "") -> list[Manifest]:
        """Return every object of a kind that the label selector matches."""
        options = [f"--namespace={namespace}", f"--selector={selector}", "--output=json"]
        found: list[Manifest] = json.loads(self.kubectl("get", kind, *options))["items"]
        return found

    def wait(
        self,
        target: str,
        condition: str,
        *,
        namespace: str = "default",
        timeout_s: float = PATIENCE_S,
    ) -> None:
        """Wait for a condition, as `kubectl wait TARGET --for=CONDITION` does."""
        options = [f"--for={condition}", f"--timeout={timeout_s}s", f"--namespace={namespace}"]
        self.kubectl("wait", target, *options)

    def wait_until(
        self, what: str, is_true: Callable[[], bool], *, timeout_s: float = PATIENCE_S
    ) -> float:
        """Ask until `is_true()`, and return the seconds that it took.

        Raises:
            ClusterError: naming `what` when it is not true in time.
        """
        started_at = time.monotonic()
        while not is_true():
            if time.monotonic() - started_at > timeout_s:
                raise ClusterError(f"{what}: not so after {timeout_s} s")
            time.sleep(0.5)
        return time.monotonic() - started_at

    @contextmanager
    def tunnel(self, service: str, port: int, *, namespace: str = "default") -> Iterator[str]:
        """Yield host:port on this machine, whose connections reach a Service of the cluster."""
        command = [*self._kubectl, "port-forward", f"--namespace={namespace}"]
        forward = subprocess.Popen(
            [*command, f"service/{service}", f":{port}"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert forward.stdout is not None, "stdout is a pipe"
            line = forward.stdout.readline()
            if not line.startswith("Forwarding from "):
                raise ClusterError(f"cannot reach service {namespace}/{service} port {port}")
            yield line.split()[2]
        finally:
            forward.terminate()
            forward.communicate()


class LocalCluster(Cluster):
    """A cluster of this process: it can be broken on purpose, and is gone with its owner."""

    is_local = True
    registry = REGISTRY_ADDRESS
    """The registry as the cluster's network knows it; images are named `registry.test/...`."""

    def __init__(self, owned: Owned, num_nodes: int, kubeconfig: Path, reader: Reader) -> None:
        super().__init__(kubeconfig, [str(cache_folder() / "tools" / "kubectl")])
        self._reader = reader
        self.nodes = tuple(node_name(index) for index in range(1, num_nodes + 1))
        self.logs: Path = owned.folder
        """Logs of every component: log/*.log, and node*/*.log for kubelets and proxies."""
        self._owned = owned
        self._num_gpus: dict[str, int] = {}
        self._simulates = False

    def get(self, kind: str, name: str = "", *, namespace: str = "default") -> Manifest:
        """Return one object, or the list of all of a kind when `name` is empty."""
        return self._reader.get(kind, name, namespace)

    def items(self, kind: str, *, namespace: str = "default", selector: str = "") -> list[Manifest]:
        """Return every object of a kind that the label selector matches."""
        return self._reader.items(kind, namespace, selector)

    @contextmanager
    def tunnel(self, service: str, port: int, *, namespace: str = "default") -> Iterator[str]:
        """Yield host:port on this machine; connections go through the Service's cluster IP."""
        address = self.get("service", service, namespace=namespace)["spec"]["clusterIP"]
        with Tunnel(self._owned.network, address, port) as tunnel:
            yield tunnel.address

    @contextmanager
    def tunnel_to(self, host: str, port: int) -> Iterator[str]:
        """Yield host:port on this machine that leads to an address, say a pod's or a node's."""
        with Tunnel(self._owned.network, host, port) as tunnel:
            yield tunnel.address

    def listen(self) -> socket.socket:
        """Return a listening socket whose address pods reach, for a server of this process."""
        return listen_inside(self._owned.network, CONTROL_IP)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs `command` in the control plane's network.

        There it reaches pods, nodes, Services and the registry by their addresses.
        """
        path = f"/proc/{os.getpid()}/fd/{self._owned.network}"
        return ["nsenter", f"--net={path}", "--", *command]

    def set_gpus(self, node: str, num_gpus: int) -> None:
        """Give a real node `nvidia.com/gpu` capacity; its pods see no device."""
        self._num_gpus[node] = num_gpus
        amount = {"nvidia.com/gpu": str(num_gpus)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.kubectl("patch", "node", node, "--subresource=status", "--patch", patch)

    def add_simulated_nodes(self, nodes: Iterable[SimulatedNode]) -> None:
        """Add simulated nodes; KWOK makes them Ready, and the pods on them Running and Ready."""
        if not self._simulates:
            self._owned.ask("start-component", "kwok")
            self._simulates = True
        self.apply(*(node.manifest() for node in nodes))

    def remove_simulated_nodes(self) -> None:
        """Remove every simulated node; what was on them goes as if the machines were gone."""
        self.kubectl("delete", "node", "--selector=type=kwok", "--wait=false")

    def crash_node(self, node: str) -> None:
        """Kill everything on a node at once, and pull its cable."""
        self._owned.ask("crash-node", node)

    def start_node(self, node: str) -> None:
        """Start a crashed node again; it is Ready some seconds later, with its GPUs."""
        self._owned.ask("start-node", node)
        if node in self._num_gpus:
            self.wait(f"node/{node}", "condition=Ready")
            self.set_gpus(node, self._num_gpus[node])

    def stop_api_server(self) -> None:
        """Stop the API server; clients are cut off. Controllers and scheduler end with it."""
        self._owned.ask("stop-api-server")

    def start_api_server(self) -> None:
        """Start the API server, and return when it answers."""
        self._owned.ask("start-api-server")


@contextmanager
def start_cluster(*, num_nodes: int = 2) -> Iterator[LocalCluster]:
    """Run a local cluster; with `num_nodes=0` a control plane that simulated nodes may join.

    Raises:
        ToolsMissingError: with what this machine lacks, and what to do.
    """
    with ExitStack() as stack:
        owned = stack.enter_context(own_cluster(num_nodes))
        api = stack.enter_context(Tunnel(owned.network, CONTROL_IP, API_PORT))
        pki, kubeconfig = owned.folder / "pki", owned.folder / "kubeconfig"
        token = read_token(pki / "admin.kubeconfig")
        server, authority = f"https://{api.address}", pki / "ca.crt"
        write_kubeconfig(kubeconfig, authority, server, token)
        yield LocalCluster(owned, num_nodes, kubeconfig, Reader(server, authority, token))
