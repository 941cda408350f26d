"""Flags and variables of the operator process.

The fields of `RuntimeConfig` and of `OperatorSettings` are the flags (`flags` makes them): the text
under a field is the help of its flag. Only the entry point reads the environment.
"""

import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quire_operator.errors import ConfigError
from quire_operator.runtime.election import ElectionTimes
from quire_operator.runtime.web import parse_address

_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How this process runs: where it looks, where it answers, how hard it works."""

    kubeconfig: str = ""
    """Kubeconfig file; none: $KUBECONFIG, or the service account of the pod."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces to serve, separated by commas; none: all of them."""
    namespace: str = ""
    """Namespace of the Lease; none: $POD_NAMESPACE, or the service account's."""
    identity: str = ""
    """Name of this replica in the Lease; none: $POD_NAME, or the host's name."""
    leader_election: bool = True
    """Let one replica write at a time. Without it, run exactly one."""
    lease_name: str = "quire-operator"
    """Name of the Lease."""
    lease_duration_s: int = 15
    """Seconds that an abandoned Lease still binds."""
    renew_deadline_s: float = 10.0
    """Seconds that a leader tries to renew before it stops."""
    retry_period_s: float = 2.0
    """Seconds between tries to get or to renew the Lease."""
    num_workers: int = 64
    """Deployments worked on at a time; each waits for one answer of the API server."""
    settle_s: float = 0.5
    """Seconds to collect changes of status before looking at a deployment."""
    progress_s: float = 15.0
    """Seconds between two reports on a deployment that only tell of progress; while N deployments
    start, N/2, up to five minutes."""
    resync_s: float = 600.0
    """Seconds between looks at every deployment, changed or not."""
    watch_nodes: bool = True
    """Watch nodes, to say in words where a deployment fits; needs rights on nodes."""
    node_selector: str = ""
    """Label selector of the nodes to consider; none: all nodes."""
    metrics_address: str = ":8080"
    """Address of /metrics; 0 turns it off."""
    health_address: str = ":8081"
    """Address of /healthz and /readyz; 0 turns it off."""
    stuck_s: float = 300.0
    """Seconds after which a stuck watch or queue fails /healthz."""
    shutdown_s: float = 10.0
    """Seconds that running work may take on SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe lines to log."""
    log_format: Literal["text", "json"] = "text"
    """Format of log lines."""

    def __post_init__(self) -> None:
        _at_least("num-workers", self.num_workers, 1)
        _at_least("settle-s", self.settle_s, 0)
        _at_least("progress-s", self.progress_s, 0)
        _at_least("resync-s", self.resync_s, 10)
        _at_least("stuck-s", self.stuck_s, 120)
        _at_least("shutdown-s", self.shutdown_s, 0)
        for address in (self.metrics_address, self.health_address):
            if address != "0":
                parse_address(address)
        if self.leader_election:
            self.election_times()

    def election_times(self) -> ElectionTimes:
        """Return the times of the Lease.

        Raises:
            ConfigError: they contradict each other.
        """
        return ElectionTimes(
            lease_s=self.lease_duration_s,
            renew_s=self.renew_deadline_s,
            retry_s=self.retry_period_s,
        )

    def resolved(self, environment: Mapping[str, str]) -> "RuntimeConfig":
        """Return this configuration with what the machine knows filled in.

        Raises:
            ConfigError: nothing says in which namespace the Lease lives.
        """
        kubeconfig = self.kubeconfig or environment.get("KUBECONFIG", "")
        if "KUBERNETES_SERVICE_HOST" in environment and not self.kubeconfig:
            kubeconfig = ""
        namespace = self.namespace or environment.get("POD_NAMESPACE", "") or _own_namespace()
        if not namespace and self.leader_election:
            raise ConfigError(
                "no namespace for the Lease: give --namespace, or run with --no-leader-election"
            )
        identity = self.identity or environment.get("POD_NAME", "") or socket.gethostname()
        return dataclasses.replace(
            self, kubeconfig=kubeconfig, namespace=namespace, identity=identity
        )


def _at_least(flag: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"--{flag} must be {least:g} or more, not {value:g}")


def _own_namespace() -> str:
    try:
        return _ACCOUNT_NAMESPACE.read_text().strip()
    except OSError:
        return ""
