"""The cluster's addresses, on a range that no other network uses.

198.18.0.0/15 is kept for tests (RFC 2544), and exists only inside the cluster's own network
namespaces.
"""

CONTROL_IP = "198.18.0.1"
API_PORT = 6443
API_URL = f"https://{CONTROL_IP}:{API_PORT}"
REGISTRY_PORT = 5000
REGISTRY_ADDRESS = f"{CONTROL_IP}:{REGISTRY_PORT}"
REGISTRY_NAME = "registry.test"
"""What image names call the registry; the nodes know that it means `REGISTRY_ADDRESS`."""

SERVICE_RANGE = "198.18.64.0/18"
"""Wide enough for the Services of a thousand deployments."""
KUBERNETES_SERVICE_IP = "198.18.64.1"
DNS_SERVICE_IP = "198.18.64.10"
POD_RANGE = "198.19.0.0/16"
SIMULATED_POD_RANGE = "198.18.128.0/17"


def node_name(index: int) -> str:
    """Name node `index`, counted from 1."""
    return f"node{index}"


def node_ip(index: int) -> str:
    """Return the address of node `index`."""
    return f"198.18.0.{10 + index}"


def node_pod_range(index: int) -> str:
    """Return the addresses of the pods of node `index`."""
    return f"198.19.{index}.0/24"
