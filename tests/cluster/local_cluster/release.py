"""The chart, installed by the real helm."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_cluster.cluster import Cluster
from local_cluster.images import Images
from local_cluster.processes import run_command

REPOSITORY = Path(__file__).parents[3]
CHART = REPOSITORY / "charts" / "quire"
SAMPLES = REPOSITORY / "manifests" / "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An installed chart."""

    cluster: Cluster
    images: Images
    name: str = "quire"
    namespace: str = "quire-system"

    def helm(self, *arguments: str) -> str:
        """Run helm in the release's namespace and return what it printed."""
        helm = Path(sys.executable).parent / "helm"
        access = [f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}"]
        return run_command([str(helm), *arguments, *access])

    def install(self, flags: Sequence[str] = ()) -> None:
        """Install the chart with the images of the working tree and wait for the operator."""
        options = ["--create-namespace", "--wait", "--timeout=10m"]
        given = [*self.images.chart_flags(), *flags]
        self.helm("install", self.name, str(CHART), *options, *given)

    def upgrade(self, flags: Sequence[str] = ()) -> None:
        """Upgrade the release, its values kept but for the flags."""
        options = ["--reuse-values", "--wait", "--timeout=10m"]
        self.helm("upgrade", self.name, str(CHART), *options, *flags)

    def uninstall(self) -> None:
        """Uninstall the chart; the CRD stays, as the chart promises."""
        self.helm("uninstall", self.name, "--wait", "--timeout=10m")

    def operator_pods(self) -> list[str]:
        """Name the operator's pods, without those that are on their way out."""
        pods = self.cluster.items(
            "pod", namespace=self.namespace, selector="app.kubernetes.io/name=quire"
        )
        metadata = [pod["metadata"] for pod in pods]
        return [meta["name"] for meta in metadata if "deletionTimestamp" not in meta]


@contextmanager
def installed(cluster: Cluster, images: Images) -> Iterator[Release]:
    """Keep the chart installed inside the `with` block."""
    release = Release(cluster=cluster, images=images)
    release.install()
    yield release
    release.uninstall()
