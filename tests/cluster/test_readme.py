"""The README's commands for a cluster, run as they are written, in their order."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from chart import HELM, ROOT
from local_cluster.release import Release
from local_cluster.tools import cache_folder
from readme import blocks, section

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def no_release(release: Release) -> Iterator[Release]:
    """The cluster without the release that other tests share, which comes back at the end."""
    release.uninstall()
    yield release
    release.install()


@pytest.fixture
def shell(no_release: Release, tmp_path: Path) -> Mapping[str, str]:
    """The environment of somebody at the cluster: helm and kubectl, and the images built here."""
    flags = shlex.join(no_release.images.chart_flags())
    helm = tmp_path / "helm"
    helm.write_text(
        f'#!/bin/sh\ncase "$1" in install|upgrade) exec {HELM} "$@" {flags};; esac\n'
        f'exec {HELM} "$@"\n'
    )
    helm.chmod(0o755)
    path = f"{tmp_path}:{cache_folder() / 'tools'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECONFIG": str(no_release.cluster.kubeconfig)}


def test_every_command_of_the_readme_works(
    shell: Mapping[str, str], figure: Callable[[str, str], None]
) -> None:
    printed = []
    for block in blocks(section("On Kubernetes"), "sh"):
        started_at = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=dict(shell),
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
        figure(f"README: {block.splitlines()[0]}", f"{time.monotonic() - started_at:.0f} s")

    text = "\n".join(printed)
    assert "Phase:          Succeeded" in text, "of `helm test`"
    assert "Paris" in text
    assert "Rollback was a success" in text
