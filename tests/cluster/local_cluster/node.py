"""A node: containerd, kubelet and kube-proxy in namespaces of their own.

Killing the first process of a node's PID namespace is the node's crash: everything on it dies at
once, its mounts vanish, and what it wrote to disk stays.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from local_cluster.addresses import (
    DNS_SERVICE_IP,
    POD_RANGE,
    REGISTRY_ADDRESS,
    REGISTRY_NAME,
    node_ip,
    node_name,
    node_pod_range,
)
from local_cluster.identity import Identities
from local_cluster.network import in_namespace
from local_cluster.tools import Tools

PAUSE_IMAGE = f"{REGISTRY_NAME}/pause:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Files and the start command of one node."""

    index: int
    tools: Tools
    identities: Identities
    folder: Path
    """What lives as long as the cluster."""
    layers: Path
    """containerd's root: image layers, kept between clusters."""
    cgroup: str
    api_ready: Path
    """A file that appears when the API server answers for the first time."""

    @property
    def name(self) -> str:
        return node_name(self.index)

    def prepare(self, pause_archive: Path, resolv_conf: Path, kept_images: Path) -> None:
        """Write every configuration file and the start script."""
        self.folder.mkdir()
        self.layers.mkdir(parents=True, exist_ok=True)
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-quire.conflist").write_text(self._cni())
        (self.folder / "containerd.toml").write_text(self._containerd())
        (self.folder / "kubelet.json").write_text(self._kubelet(resolv_conf))
        (self.folder / "start.sh").write_text(self._script(pause_archive, kept_images))

    def command(self) -> list[str]:
        """Return the command that starts the node; its process is the namespaces' keeper."""
        new = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return in_namespace(self.name, *new, "bash", str(self.folder / "start.sh"))

    def _cni(self) -> str:
        # Point-to-point: packets between two pods of a node are routed, so that the Service rules
        # see both ways. A bridge would need br_netfilter for that.
        address_management = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": node_pod_range(self.index)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugins = [
            {"type": "ptp", "ipMasq": False, "ipam": address_management},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        return json.dumps({"cniVersion": "0.4.0", "name": "quire", "plugins": plugins})

    def _containerd(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        mirrors = "".join(
            f'[{cri}.registry.mirrors."{name}"]\nendpoint = ["http://{REGISTRY_ADDRESS}"]\n'
            for name in (REGISTRY_NAME, "docker.io", "ghcr.io", "registry.k8s.io")
        )
        # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score, and fails
        # with no word about it.
        return f"""\
version = 2
root = "{self.layers}"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.folder / "opt"}"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{self.folder / "cni"}"
[{cri}.containerd]
discard_unpacked_layers = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{mirrors}"""

    def _kubelet(self, resolv_conf: Path) -> str:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolv_conf),
            "podLogsDir": str(self.folder / "logs"),
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "authentication": {
                "x509": {"clientCAFile": str(self.identities.authority)},
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            "enforceNodeAllocatable": [],
            "imageGCHighThresholdPercent": 100,
            "registryPullQPS": 0,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
        }
        return json.dumps(config, indent=1)

    def _script(self, pause_archive: Path, kept_images: Path) -> str:
        kubernetes, folder = self.tools.kubernetes, self.folder
        # A node's /run is empty when it starts, as after any boot. bash stays the first process,
        # because that one has to reap what others leave.
        return f"""\
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
if [ ! -e {folder}/booted ]; then
  # Layers may come from a cluster before: away with its containers, and with old images.
  echo 'disabled_plugins = ["io.containerd.grpc.v1.cri"]' | cat - {folder}/containerd.toml \\
    >{folder}/clean.toml
  containerd -c {folder}/clean.toml &
  cleaner=$!
  until ctr version >/dev/null 2>&1; do sleep 0.1; done
  for id in $(ctr -n k8s.io containers list -q); do ctr -n k8s.io containers rm "$id"; done
  # An image has several names; it stays when one of them is on the list.
  ctr -n k8s.io images list | awk -v list={kept_images} '
    BEGIN {{ while ((getline name < list) > 0) listed[name] }}
    NR > 1 {{ digest[$1] = $3; if ($1 in listed) kept[$3] }}
    END {{ for (name in digest) if (!(digest[name] in kept)) print name }}
  ' | xargs -r ctr -n k8s.io images rm
  ctr -n k8s.io images import {pause_archive}
  kill $cleaner
  wait $cleaner
  touch {folder}/booted
fi
containerd -c {folder}/containerd.toml &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
until [ -e {self.api_ready} ]; do sleep 0.1; done
{kubernetes} kube-proxy --kubeconfig={self.identities.kubeconfig("proxy")} \\
  --hostname-override={self.name} --cluster-cidr={POD_RANGE} --proxy-mode=iptables \\
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \\
  --conntrack-tcp-timeout-close-wait=0 >>{folder}/proxy.log 2>&1 &
{kubernetes} kubelet --config={folder}/kubelet.json \\
  --kubeconfig={self.identities.kubeconfig(self.name)} --root-dir={folder}/kubelet \\
  --cert-dir={folder}/kubelet/pki --hostname-override={self.name} \\
  --node-ip={node_ip(self.index)} >>{folder}/kubelet.log 2>&1 &
wait
"""
