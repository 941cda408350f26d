"""The programs that the cluster is made of: where they lie, and how they get there.

Debian packages bring etcd, containerd, runc, the CNI plugins, a registry and buildah. Kubernetes,
CoreDNS and KWOK are built from their Go modules, once for each version, into the user's cache
folder; helm comes with the locked Python packages.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_cluster.errors import ClusterError, ToolsMissingError

KUBERNETES_VERSION = "1.34.4"
COREDNS_VERSION = "1.12.4"  # the newest built on the libraries of Kubernetes 1.34
KWOK_VERSION = "0.7.0"

SOURCES = Path(__file__).parents[1] / "tools"

# What each Debian package is there for: a program by which to see that it is installed.
PACKAGES: Mapping[str, str] = {
    "buildah": "/usr/bin/buildah",
    "conntrack": "/usr/sbin/conntrack",
    "containerd": "/usr/bin/containerd",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debootstrap": "/usr/sbin/debootstrap",
    "docker-registry": "/usr/bin/docker-registry",
    "etcd-server": "/usr/bin/etcd",
    "iproute2": "/usr/sbin/ip",
    "iptables": "/usr/sbin/iptables",
    "openssl": "/usr/bin/openssl",
    "prometheus": "/usr/bin/prometheus",
    "runc": "/usr/sbin/runc",
}


def cache_folder() -> Path:
    """Return where binaries, image layers and the registry's data are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Paths of the programs that no package has."""

    folder: Path

    @property
    def kubernetes(self) -> Path:
        """Every Kubernetes component, chosen by its first argument."""
        return self.folder / f"kubernetes-{KUBERNETES_VERSION}"

    @property
    def coredns(self) -> Path:
        return self.folder / f"coredns-{COREDNS_VERSION}"

    @property
    def kwok(self) -> Path:
        return self.folder / f"kwok-{KWOK_VERSION}"

    @property
    def pause(self) -> Path:
        """The program of a pod's sandbox."""
        return self.folder / f"pause-{KUBERNETES_VERSION}"

    @property
    def kubectl(self) -> Path:
        """The kubectl of that Kubernetes, under its own name."""
        return self.folder / "kubectl"

    def missing(self) -> list[str]:
        """Name what a cluster needs and this machine lacks."""
        lacking = [name for name, program in PACKAGES.items() if not Path(program).exists()]
        built = (self.kubernetes, self.coredns, self.kwok, self.pause, self.kubectl)
        return lacking + [program.name for program in built if not program.exists()]


def find_tools() -> Tools:
    """Return the tools' paths.

    Raises:
        ToolsMissingError: when something is missing, or this process may not use it.
    """
    tools = Tools(folder=cache_folder() / "tools")
    if os.geteuid() != 0:
        raise ToolsMissingError("a local cluster needs root (namespaces, mounts); set KUBECONFIG")
    if missing := tools.missing():
        raise ToolsMissingError(f"missing: {', '.join(missing)}; run `make cluster-tools` once")
    return tools


def install_tools() -> Tools:
    """Install the packages and build the binaries that are missing."""
    tools = Tools(folder=cache_folder() / "tools")
    tools.folder.mkdir(parents=True, exist_ok=True)
    with locked(tools.folder / "lock"):
        _install_packages(tools)
        _build(tools)
    return tools


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`, which another process may hold for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install_packages(tools: Tools) -> None:
    lacking = [name for name in tools.missing() if name in PACKAGES]
    if not lacking:
        return
    if shutil.which("apt-get") is None:
        raise ToolsMissingError(f"no apt-get here; install by hand: {', '.join(lacking)}")
    # Offline, so that no package starts a service: the cluster runs its own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
    _timed("apt-get update", ["apt-get", "update", "--quiet=2"], env=environment)
    install = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *lacking]
    _timed(f"apt-get install {' '.join(lacking)}", install, env=environment)


def _build(tools: Tools) -> None:
    version = KUBERNETES_VERSION
    major, minor, _ = version.split(".")
    component = "k8s.io/component-base/version"
    stamp = f"-X {component}.gitVersion=v{version}"
    stamp += f" -X {component}.gitMajor={major} -X {component}.gitMinor={minor}"
    for program, source in (
        (tools.pause, "./pause"),
        (tools.kubernetes, "./kubernetes"),
        (tools.coredns, "./coredns"),
    ):
        _go_build(program, ["build", "-ldflags", f"-s -w {stamp}", "-o", f"{program}.part", source])
    # KWOK is built on the libraries of another Kubernetes, so in a module of its own.
    module = f"sigs.k8s.io/kwok/cmd/kwok@v{KWOK_VERSION}"
    _go_build(tools.kwok, ["install", "-ldflags", "-s -w", module])
    tools.kubectl.write_text(f'#!/bin/sh\nexec "{tools.kubernetes}" kubectl "$@"\n')
    tools.kubectl.chmod(0o755)


def _go_build(program: Path, arguments: Sequence[str]) -> None:
    if program.exists():
        return
    if shutil.which("go") is None:
        raise ToolsMissingError(f"building {program.name} needs Go 1.24 or newer on the PATH")
    bin_folder = program.parent / "bin"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(bin_folder)}
    command = ["go", arguments[0], "-trimpath", *arguments[1:]]
    _timed(f"build {program.name}", command, env=environment, cwd=SOURCES)
    if arguments[0] == "install":
        built = bin_folder / program.name.rpartition("-")[0]
        built.rename(f"{program}.part")
        bin_folder.rmdir()
    # Renamed at the end, so that a build cut short leaves no program behind.
    Path(f"{program}.part").rename(program)


def _timed(title: str, command: Sequence[str], **options: object) -> None:
    started_at = time.monotonic()
    print(f"cluster-tools: {title} ...", flush=True)  # noqa: T201
    done = subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise ClusterError(f"{title} failed with status {done.returncode}")
    print(f"cluster-tools: {title}: {time.monotonic() - started_at:.0f} s", flush=True)  # noqa: T201
