"""The control plane's components: how each is started, and what the cluster needs besides."""

import json
from dataclasses import dataclass
from pathlib import Path

from local_cluster.addresses import (
    API_PORT,
    CONTROL_IP,
    DNS_SERVICE_IP,
    REGISTRY_ADDRESS,
    SERVICE_RANGE,
    SIMULATED_POD_RANGE,
)
from local_cluster.gpu_nodes import KWOK_OPTIONS, NODE_STAGE
from local_cluster.identity import Identities
from local_cluster.tools import Tools

ETCD = "http://127.0.0.1:2379"
GO_ENVIRONMENT = {"GOGC": "400", "GOMEMLIMIT": "1500MiB"}
"""Memory for time, of which tests on two cores have less: garbage is collected less often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Command lines of the control plane, which runs in one network namespace."""

    tools: Tools
    identities: Identities
    folder: Path
    registry_data: Path

    def commands(self) -> dict[str, list[str]]:
        """Return every component's command by its name, in the order of their start."""
        return {
            "etcd": self._etcd(),
            "apiserver": self._api_server(),
            "controller": self._controller_manager(),
            "scheduler": self._scheduler(),
            "registry": self._registry(),
            "coredns": self._coredns(),
            "kwok": self._kwok(),
        }

    def _etcd(self) -> list[str]:
        # Nothing in it must survive the machine, so nothing waits for the disk.
        return [
            *("etcd", "--unsafe-no-fsync", f"--data-dir={self.folder / 'etcd'}"),
            *(f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--quota-backend-bytes=2147483648",
        ]

    def _api_server(self) -> list[str]:
        ids = self.identities
        return [
            *(str(self.tools.kubernetes), "kube-apiserver", f"--etcd-servers={ETCD}"),
            *("--bind-address=0.0.0.0", f"--secure-port={API_PORT}"),
            f"--advertise-address={CONTROL_IP}",
            f"--tls-cert-file={ids.certificate('apiserver')}",
            f"--tls-private-key-file={ids.key('apiserver')}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--service-account-key-file={ids.certificate('service-account')}",
            f"--service-account-signing-key-file={ids.key('service-account')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={ids.tokens}",
            f"--kubelet-client-certificate={ids.certificate('kubelet-client')}",
            f"--kubelet-client-key={ids.key('kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--shutdown-delay-duration=0s",
            # Debian's etcd is too old for it. Refused at once, clients list and watch as ever; KWOK
            # was refused later, and went by lists that came a minute apart in the end.
            "--feature-gates=WatchList=false",
        ]

    def _controller_manager(self) -> list[str]:
        ids = self.identities
        return [
            *(str(self.tools.kubernetes), "kube-controller-manager"),
            f"--kubeconfig={ids.kubeconfig('controller')}",
            f"--cert-dir={self.folder / 'controller'}",
            f"--service-account-private-key-file={ids.key('service-account')}",
            f"--root-ca-file={ids.authority}",
            "--use-service-account-credentials=true",
            *("--leader-elect=false", "--bind-address=127.0.0.1"),
        ]

    def _scheduler(self) -> list[str]:
        return [
            *(str(self.tools.kubernetes), "kube-scheduler"),
            f"--kubeconfig={self.identities.kubeconfig('scheduler')}",
            f"--cert-dir={self.folder / 'scheduler'}",
            *("--leader-elect=false", "--bind-address=127.0.0.1"),
        ]

    def _registry(self) -> list[str]:
        config = {
            "version": 0.1,
            "storage": {
                "filesystem": {"rootdirectory": str(self.registry_data)},
                "delete": {"enabled": True},
            },
            "http": {"addr": REGISTRY_ADDRESS},
            "log": {"level": "warn"},
        }
        path = self.folder / "registry.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return ["docker-registry", "serve", str(path)]

    def _coredns(self) -> list[str]:
        path = self.folder / "Corefile"
        path.write_text(
            f".:53 {{\n  bind {CONTROL_IP}\n  errors\n"
            "  kubernetes cluster.local in-addr.arpa {\n"
            f"    kubeconfig {self.identities.kubeconfig('admin')}\n    ttl 2\n  }}\n}}\n"
        )
        return [str(self.tools.coredns), "-conf", str(path)]

    def _kwok(self) -> list[str]:
        path = self.folder / "kwok.yaml"
        path.write_text("\n---\n".join(map(json.dumps, (KWOK_OPTIONS, NODE_STAGE))))
        return [
            *(str(self.tools.kwok), f"--kubeconfig={self.identities.kubeconfig('admin')}"),
            f"--config={path}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            # As kubelets do it. Without a Lease the node controller finds nodes lost in a minute.
            "--node-lease-duration-seconds=40",
            *(f"--cidr={SIMULATED_POD_RANGE}", f"--node-ip={CONTROL_IP}"),
        ]


def base_objects() -> list[dict[str, object]]:
    """Return what a cluster has besides components: the proxies' rights, DNS as a Service."""
    dns = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kube-proxy"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:node-proxier",
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": "system:kube-proxy",
                }
            ],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": dns,
            "spec": {"clusterIP": DNS_SERVICE_IP, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [CONTROL_IP], "conditions": {"ready": True}}],
            "ports": ports,
        },
    ]
