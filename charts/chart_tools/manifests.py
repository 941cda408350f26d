"""The chart without Helm: one plain file that `kubectl apply` and kustomize take."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

NAMESPACE = "quire-system"
HEADER = """\
# The operator with the chart's defaults, in the namespace quire-system. `make generate` makes this
# from charts/quire: change it there. Install with
#
#   kubectl apply --server-side -f manifests/install.yaml
"""


class _BlockDumper(yaml.SafeDumper):
    """Writes texts of many lines as such."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_BlockDumper.add_representer(str, _represent_text)


class HelmError(Exception):
    """helm refused; the message is its own."""


def helm_template(helm: Path, chart: Path, *flags: str) -> list[Manifest]:
    """Render a chart and return its objects, hooks included.

    Raises:
        HelmError: helm's own words.
    """
    command = [str(helm), "template", "quire", str(chart), f"--namespace={NAMESPACE}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmError(done.stderr.strip())
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def install_manifest(helm: Path, chart: Path) -> str:
    """Return the text of install.yaml: the chart's defaults, without what only Helm reads."""
    rendered = helm_template(helm, chart, "--no-hooks")
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": "quire",
                "pod-security.kubernetes.io/enforce": "restricted",
            },
        },
    }
    documents = [namespace, *_without_helm(rendered)]
    return HEADER + "---\n" + dump(documents)


def part_manifest(helm: Path, chart: Path, template: str, *flags: str) -> str:
    """Return what one template makes, as plain objects."""
    rendered = helm_template(helm, chart, f"--show-only=templates/{template}", *flags)
    header = (
        f"# `make generate` makes this from charts/quire/templates/{template}: change it there.\n"
    )
    documents = list(_without_helm(rendered))
    return (
        f"{header}---\n{yaml.dump_all(documents, Dumper=_BlockDumper, sort_keys=False, width=110)}"
    )


def dump(documents: Sequence[Manifest]) -> str:
    """Return documents as YAML, keys in their order."""
    return yaml.safe_dump_all(documents, sort_keys=False, width=110)


def _without_helm(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        for labels in _label_maps(manifest):
            labels.pop("helm.sh/chart", None)
            labels.pop("app.kubernetes.io/managed-by", None)
        annotations = manifest["metadata"].get("annotations", {})
        annotations.pop("helm.sh/resource-policy", None)
        if not annotations:
            manifest["metadata"].pop("annotations", None)
        yield manifest


def _label_maps(manifest: Manifest) -> Iterator[Manifest]:
    yield manifest["metadata"].get("labels", {})
    template = manifest.get("spec", {}).get("template")
    if isinstance(template, dict):
        yield template["metadata"]["labels"]
