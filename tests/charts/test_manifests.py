"""The chart without Helm."""

import shutil
import subprocess

import pytest
import yaml

from chart import ROOT, render
from chart_tools.manifests import Manifest

MANIFESTS = ROOT / "manifests"


def documents(text: str) -> list[Manifest]:
    return sorted(
        (item for item in yaml.safe_load_all(text) if item),
        key=lambda item: (item["kind"], item["metadata"]["name"]),
    )


def test_the_plain_manifests_are_the_chart_in_its_own_namespace() -> None:
    installed = documents((MANIFESTS / "install.yaml").read_text())

    chart = [item for item in render({}) if item["kind"] != "Pod"]
    assert {(item["kind"], item["metadata"]["name"]) for item in installed} == {
        ("Namespace", "quire-system"),
        *((item["kind"], item["metadata"]["name"]) for item in chart),
    }
    assert "helm" not in (MANIFESTS / "install.yaml").read_text().lower()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_makes_the_same() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(MANIFESTS)], capture_output=True, text=True, check=True
    )

    assert documents(done.stdout) == documents((MANIFESTS / "install.yaml").read_text())
