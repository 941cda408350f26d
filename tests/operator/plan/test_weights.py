import json
from typing import Any

from plan_support import child, condition, engine, kinds, verdict
from simulated_cluster import SimulatedCluster, make_deployment

CLAIM: dict[str, Any] = {"type": "PVC", "size": "100Gi"}


def cluster_with(cache: dict[str, Any], **spec: Any) -> SimulatedCluster:
    return SimulatedCluster(make_deployment(cache=cache, **spec))


def test_engines_wait_for_the_job_that_fetches_their_weights() -> None:
    cluster = cluster_with(CLAIM)

    made = cluster.settle()

    assert not any(name.startswith("demo-engine") for name in cluster.pods)
    assert verdict(made, "ModelCached") == ("False", "Downloading")
    assert verdict(made, "Ready") == ("False", "ModelDownloading")
    assert cluster.deployment["status"]["phase"] == "Downloading"

    cluster.complete_job()
    made = cluster.settle()

    assert verdict(made, "ModelCached") == ("True", "Cached")
    assert cluster.deployment["status"]["phase"] == "Ready"


def test_engines_mount_fetched_weights_read_only_and_never_ask_the_hub() -> None:
    cluster = cluster_with(CLAIM, model={"source": "hf://a/b", "tokenSecretRef": {"name": "hf"}})
    cluster.settle()
    cluster.complete_job()
    made = cluster.plan()

    env = {entry["name"]: entry for entry in engine(made)["env"]}
    assert env["HF_HUB_OFFLINE"]["value"] == "1"
    assert "HF_TOKEN" not in env
    mount = next(m for m in engine(made)["volumeMounts"] if m["name"] == "weights")
    assert mount["readOnly"] is True
    job = child(made, "Job")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}} in (
        job["env"]
    )


def test_another_model_is_another_job_and_the_old_engines_go_on_meanwhile() -> None:
    cluster = cluster_with(CLAIM)
    cluster.settle()
    cluster.complete_job()
    cluster.settle()
    old_pods = dict(cluster.pods)

    cluster.change_spec(model={"source": "hf://Qwen/Qwen3-14B"})
    made = cluster.settle()

    assert cluster.pods == old_pods
    assert condition(made, "WorkloadAvailable")["status"] == "True"
    assert verdict(made, "Ready") == ("False", "ModelDownloading")

    cluster.complete_job()
    cluster.settle()
    assert (
        "--model=Qwen/Qwen3-14B" in cluster.pods["demo-engine-0"]["spec"]["containers"][0]["args"]
    )


def test_a_job_that_is_done_is_not_repeated_for_another_image() -> None:
    cluster = cluster_with(CLAIM)
    cluster.settle()
    cluster.complete_job()
    cluster.settle()
    job = next(m for key, m in cluster.objects.items() if key.kind == "Job")

    cluster.change_spec(engine={"image": "example.com/engine:2"})
    cluster.settle()

    assert next(m for key, m in cluster.objects.items() if key.kind == "Job") == job


def test_a_job_that_is_not_done_is_made_again_when_its_image_is_corrected() -> None:
    cluster = cluster_with(CLAIM, engine={"image": "example.com/engine:typo"})
    cluster.settle()

    cluster.change_spec(engine={"image": "example.com/engine:1"})
    made = cluster.reconcile()

    assert [d.key.kind for d in made.deletions] == ["Job"]
    assert "Job" not in kinds(made)
    again = child(cluster.reconcile(), "Job")["spec"]["template"]["spec"]["containers"][0]
    assert again["image"] == "example.com/engine:1"


def fail_job(cluster: SimulatedCluster, last_words: str) -> None:
    key, job = next((k, m) for k, m in cluster.objects.items() if k.kind == "Job")
    failed = {"type": "Failed", "status": "True", "message": "Job has reached its backoff limit"}
    job["status"] = {"conditions": [failed]}
    ended = {"terminated": {"exitCode": 1, "message": last_words}}
    cluster.pods["weights"] = {
        "metadata": {
            "name": "weights",
            "uid": "1",
            "labels": {"app.kubernetes.io/component": "weights"},
            "ownerReferences": [{"controller": True, "name": key.name}],
        },
        "status": {"phase": "Failed", "containerStatuses": [{"state": ended, "restartCount": 0}]},
    }


def test_a_download_that_failed_says_why_and_how_to_repeat_it() -> None:
    cluster = cluster_with(CLAIM)
    cluster.settle()
    fail_job(cluster, "Downloading\nquire fetch: error: downloading a/b failed: no space left")

    made = cluster.plan()

    assert verdict(made, "ModelCached") == ("False", "DownloadFailed")
    message = condition(made, "ModelCached")["message"]
    assert "no space left" in message
    assert "kubectl delete job demo-weights-" in message
    assert made.status["phase"] == "Failed"


def test_a_download_without_access_asks_for_a_token() -> None:
    cluster = cluster_with(CLAIM)
    cluster.settle()
    fail_job(cluster, "quire fetch: error: a/b is gated: accept its terms on the hub")

    made = cluster.plan()

    assert verdict(made, "ModelCached") == ("False", "AuthFailed")
    assert "set spec.model.tokenSecretRef" in condition(made, "ModelCached")["message"]


def test_a_retained_claim_has_no_owner_and_is_never_pruned() -> None:
    cluster = cluster_with(CLAIM)
    cluster.settle()

    cluster.change_spec(cache={"type": "Ephemeral"})
    cluster.settle()

    claim = cluster.child("PersistentVolumeClaim", "demo-weights")
    assert "ownerReferences" not in claim["metadata"]
    assert not any(key.kind == "Job" for key in cluster.objects)


def test_a_claim_that_is_not_retained_goes_when_it_is_not_wanted() -> None:
    cluster = cluster_with(CLAIM | {"retain": "Delete"})
    cluster.settle()

    cluster.change_spec(cache={"type": "Ephemeral"})
    cluster.settle()

    assert not any(key.kind == "PersistentVolumeClaim" for key in cluster.objects)


def test_a_folder_of_the_node_is_filled_by_an_init_container() -> None:
    made = cluster_with({"type": "HostPath", "hostPath": "/models"}).plan()

    pod = child(made, "StatefulSet")["spec"]["template"]["spec"]
    [fetch] = pod["initContainers"]
    assert fetch["command"] == ["quire", "fetch"]
    volume = next(v for v in pod["volumes"] if v["name"] == "weights")
    assert volume["hostPath"] == {"path": "/models", "type": "DirectoryOrCreate"}
    assert "Job" not in kinds(made)


def test_an_image_with_weights_is_mounted_as_a_volume() -> None:
    model = {"source": "oci://registry.example.com/models/qwen3:1"}
    cluster = SimulatedCluster(make_deployment(model=model), server_version=(1, 34))

    made = cluster.plan()

    pod = child(made, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["volumes"][0]["image"]["reference"] == "registry.example.com/models/qwen3:1"
    assert "--model=/models" in engine(made)["args"]
    assert "feature gate ImageVolume" in condition(made, "ModelCached")["message"]


def test_a_claim_with_weights_is_mounted_read_only() -> None:
    made = SimulatedCluster(make_deployment(model={"source": "pvc://models/a/b"})).plan()

    assert "--model=/models/a/b" in engine(made)["args"]
    mount = next(m for m in engine(made)["volumeMounts"] if m["name"] == "model")
    assert mount == {"name": "model", "mountPath": "/models", "readOnly": True}


def test_what_the_job_found_is_what_capacity_is_judged_by() -> None:
    cluster = cluster_with(CLAIM, model={"source": "hf://org/small-1B", "maxModelLen": 4096})
    cluster.settle()
    cluster.complete_job()
    key = next(key for key in cluster.objects if key.kind == "Job")
    layers = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "num_hidden_layers": 126,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    ended = {"terminated": {"exitCode": 0, "message": json.dumps({"bytes": 9, "config": layers})}}
    cluster.pods["weights"] = {
        "metadata": {
            "name": "weights",
            "uid": "1",
            "labels": {"app.kubernetes.io/component": "weights"},
            "ownerReferences": [{"controller": True, "name": key.name}],
        },
        "status": {"phase": "Succeeded", "containerStatuses": [{"state": ended}]},
    }

    made = cluster.plan()

    assert made.status["cache"]["bytes"] == 9
    assert verdict(made, "CapacityAvailable") == ("False", "VRAMTooSmall")

    cluster.pods["weights"]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = ""
    assert verdict(cluster.plan(), "CapacityAvailable") == ("True", "Fits")
