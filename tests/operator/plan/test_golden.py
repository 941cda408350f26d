"""What samples become, written down: the first in full, the others as what they change.

A file that is missing is written, and the test fails once: look at it, then commit it. To accept a
change, delete the files and run the tests again.
"""

import copy
import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_operator.plan import Manifest, Observed, OperatorSettings, object_key, plan
from simulated_cluster import START, make_deployment

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = sorted((Path(__file__).parents[3] / "manifests" / "samples").glob("*.yaml"))
APIS = frozenset(
    {
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("resource.k8s.io/v1", "ResourceClaimTemplate"),
        ("resource.nvidia.com/v1beta1", "ComputeDomain"),
        ("scheduling.x-k8s.io/v1alpha1", "PodGroup"),
        ("custom.metrics.k8s.io/v1beta1", "MetricValueList"),
    }
)
SETTINGS = OperatorSettings(
    engine_image="example.com/quire-engine:1",
    router_image="example.com/quire-router:1",
    pipeline_parallelism=True,
)
CONTEXT_LINES = 2
COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}


def rendered(**spec: Any) -> str:
    """Return all objects of a deployment called demo, without what every one of them has."""
    observed = Observed(now=START, apis=APIS, server_version=(1, 34))
    first = plan(make_deployment(**spec), observed, SETTINGS)
    # Engines are made when their weights are there.
    jobs = {object_key(m): m | COMPLETE for m in first.objects if m["kind"] == "Job"}
    made = plan(make_deployment(**spec), replace(observed, children=jobs), SETTINGS)
    return yaml.dump_all(map(shortened, made.objects), Dumper=Plain, sort_keys=False, width=100)


def shortened(manifest: Manifest) -> Manifest:
    manifest = copy.deepcopy(manifest)
    metadata = manifest["metadata"]
    notes = without_hashes(metadata.get("annotations", {}))
    manifest["metadata"] = {"name": metadata["name"]} | ({"annotations": notes} if notes else {})
    template = manifest.get("spec", {}).get("template", {}).get("metadata", {})
    if "annotations" in template:
        template["annotations"] = without_hashes(template["annotations"])
    return manifest


def without_hashes(annotations: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in annotations.items() if not k.endswith("-hash")}


class Plain(yaml.SafeDumper):
    """YAML without anchors: a reader should not have to look elsewhere."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def check(path: Path, text: str) -> None:
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"wrote {path.name}: look at it, and run the test again")
    assert path.read_text() == text, f"delete {path.name} if this is what you want"


PLAINEST: dict[str, Any] = {"model": {"source": "hf://Qwen/Qwen3-8B"}}


def test_the_plainest_deployment_is_as_written_down() -> None:
    check(GOLDEN / "plainest.yaml", rendered(**PLAINEST))


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.stem for sample in SAMPLES])
def test_a_sample_changes_what_is_written_down(sample: Path) -> None:
    spec = yaml.safe_load(sample.read_text())["spec"]

    lines = difflib.unified_diff(
        rendered(**PLAINEST).splitlines(),
        rendered(**spec).splitlines(),
        "the plainest deployment",
        sample.name,
        lineterm="",
        n=CONTEXT_LINES,
    )

    check(GOLDEN / f"{sample.stem}.diff", "\n".join(lines) + "\n")
