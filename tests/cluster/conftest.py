"""Fixtures of the tests that need a real Kubernetes; README.md beside this file describes them."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_cluster.cluster import Cluster, LocalCluster, start_cluster
from local_cluster.errors import ToolsMissingError
from local_cluster.images import Images, publish_images
from local_cluster.release import Release, installed


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real cluster: the one that KUBECONFIG names, else a local one with two nodes."""
    if named := os.environ.get("KUBECONFIG"):
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.fail("KUBECONFIG names a cluster, but there is no kubectl on the PATH")
        yield Cluster(Path(named), [kubectl])
        return
    yield from _start(num_nodes=2)


@pytest.fixture(scope="session")
def local_cluster(cluster: Cluster) -> LocalCluster:
    """The same cluster, for tests that break nodes or push images."""
    if not isinstance(cluster, LocalCluster):
        pytest.skip("needs a local cluster: unset KUBECONFIG")
    return cluster


@pytest.fixture(scope="session")
def control_plane() -> Iterator[LocalCluster]:
    """A control plane without nodes, for simulated ones: nothing ever runs there."""
    yield from _start(num_nodes=0)


@pytest.fixture(scope="session")
def images(local_cluster: LocalCluster) -> Images:
    """The project's images, built from the working tree, where the nodes can pull them."""
    return publish_images(local_cluster)


@pytest.fixture(scope="session")
def release(local_cluster: LocalCluster, images: Images) -> Iterator[Release]:
    """The chart, installed in namespace quire-system with the images of the working tree."""
    with installed(local_cluster, images) as release:
        yield release


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    # No pod can be made before the controllers have given the namespace its account.
    cluster.wait("serviceaccount/default", "create", namespace=name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Note what was measured; the end of the run shows it."""
    figures = request.config.stash.setdefault(FIGURES, [])

    def note(what: str, value: str) -> None:
        figures.append(f"{what}: {value}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures = terminalreporter.config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


def _start(*, num_nodes: int) -> Iterator[LocalCluster]:
    try:
        with start_cluster(num_nodes=num_nodes) as started:
            yield started
    except ToolsMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have a cluster: {error}")
        pytest.skip(f"needs a Kubernetes cluster: {error}")
