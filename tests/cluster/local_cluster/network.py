"""The cluster's network: a bridge for the control plane, and a namespace behind it for each node.

Everything lies in network namespaces made for the cluster, so that no packet can leave the
machine and the host's routes and firewall stay as they are. The caller runs in the control
plane's namespace.
"""

from pathlib import Path

from local_cluster.addresses import CONTROL_IP, SERVICE_RANGE, node_ip, node_name, node_pod_range
from local_cluster.processes import run_command


def in_namespace(name: str, *command: str) -> list[str]:
    """Return the command that runs `command` in a node's network namespace."""
    # Not `ip netns exec`, which mounts another /sys and so hides the cgroups.
    return ["nsenter", f"--net=/run/netns/{name}", "--", *command]


def create_network(num_nodes: int) -> None:
    """Connect the control plane and the nodes, with a route to each node's pods."""
    Path("/run/netns").mkdir()
    _ip("link set lo up")
    _ip("link add br0 type bridge")
    _ip(f"addr add {CONTROL_IP}/24 dev br0")
    _ip("link set br0 up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for index in range(1, num_nodes + 1):
        _add_node(index)
    for index in range(1, num_nodes + 1):
        for other in range(1, num_nodes + 1):
            if other != index:
                _node_ip_command(index, f"route add {node_pod_range(other)} via {node_ip(other)}")


def set_connected(index: int, *, connected: bool) -> None:
    """Plug a node's cable in, or pull it."""
    _ip(f"link set {node_name(index)} {'up' if connected else 'down'}")


def route_services(index: int) -> None:
    """Let the control plane's namespace reach Services through one node's proxy rules."""
    _ip(f"route replace {SERVICE_RANGE} via {node_ip(index)}")


def _add_node(index: int) -> None:
    name = node_name(index)
    _ip(f"netns add {name}")
    _ip(f"link add {name} type veth peer name eth0 netns {name}")
    _ip(f"link set {name} master br0 up")
    _node_ip_command(index, "link set lo up")
    _node_ip_command(index, f"addr add {node_ip(index)}/24 dev eth0")
    _node_ip_command(index, "link set eth0 up")
    _node_ip_command(index, f"route add default via {CONTROL_IP}")
    forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
    run_command(in_namespace(name, "sh", "-c", forward))
    _ip(f"route add {node_pod_range(index)} via {node_ip(index)}")


def _ip(arguments: str) -> None:
    run_command(["ip", *arguments.split()])


def _node_ip_command(index: int, arguments: str) -> None:
    run_command(in_namespace(node_name(index), "ip", *arguments.split()))
