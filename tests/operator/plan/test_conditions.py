from typing import Any

import pytest

from plan_support import (
    cannot_be_scheduled,
    condition,
    engine,
    fail,
    kinds,
    secret,
    settled,
    verdict,
)
from quire_operator.api import CONDITION_REASONS
from quire_operator.plan import OperatorSettings, referenced_objects
from simulated_cluster import SimulatedCluster, make_deployment, make_node


def test_a_ready_deployment_has_every_condition_and_all_are_good() -> None:
    cluster = settled(replicas=2, model={"source": "hf://Qwen/Qwen3-8B", "maxModelLen": 4096})

    made = cluster.plan()

    assert [entry["type"] for entry in made.status["conditions"]] == list(CONDITION_REASONS)
    good = {entry["type"]: entry["status"] for entry in made.status["conditions"]}
    assert good.pop("Degraded") == good.pop("ReconciliationPaused") == "False"
    assert set(good.values()) == {"True"}
    assert made.status["url"] == "http://demo.default.svc.cluster.local/v1"
    assert made.status["gpus"] == {"perReplica": 1, "requested": 2, "ready": 2}


def test_a_refused_spec_leaves_what_runs_and_says_what_to_correct() -> None:
    cluster = settled()
    cluster.change_spec(model={"source": "s3://bucket/model"})

    made = cluster.plan()

    assert not made.objects
    assert not made.deletions
    assert verdict(made, "Accepted") == ("False", "UnsupportedSource")
    assert verdict(made, "Ready") == ("False", "SpecInvalid")
    assert verdict(made, "WorkloadAvailable") == ("True", "MinimumReplicasAvailable")
    assert made.status["readyReplicas"] == 1
    assert [event.reason for event in made.news] == ["UnsupportedSource"]


def test_a_corrected_spec_is_accepted_again() -> None:
    cluster = settled()
    cluster.change_spec(model={"source": "s3://bucket/model"})
    cluster.settle()

    cluster.change_spec(model={"source": "hf://Qwen/Qwen3-8B"})
    made = cluster.settle()

    assert verdict(made, "Accepted") == ("True", "Valid")
    assert cluster.deployment["status"]["phase"] == "Ready"


def test_adapters_are_refused_where_the_engine_has_none() -> None:
    model = {"source": "hf://a/b", "adapters": [{"name": "x", "source": "hf://a/x"}]}

    made = SimulatedCluster(make_deployment(model=model)).plan()

    assert verdict(made, "Accepted") == ("False", "UnsupportedFeature")


def test_a_missing_secret_is_named_with_the_command_that_makes_it() -> None:
    model = {"source": "hf://a/b", "tokenSecretRef": {"name": "hugging"}}
    cluster = SimulatedCluster(make_deployment(model=model), referenced={secret("hugging"): False})
    cluster.reconcile()
    cluster.run_controllers()

    made = cluster.plan()

    assert referenced_objects(cluster.deployment) == (secret("hugging"),)
    assert verdict(made, "Accepted") == ("False", "ReferenceNotFound")
    assert verdict(made, "Ready") == ("False", "ReferenceNotFound")
    assert "kubectl create secret generic hugging" in condition(made, "Ready")["message"]
    assert "StatefulSet" in kinds(made)


@pytest.mark.parametrize(
    ("spec", "kind", "name"),
    [
        ({"model": {"source": "pvc://models/x"}}, "PersistentVolumeClaim", "models"),
        ({"cache": {"type": "PVC", "existingClaim": "c"}}, "PersistentVolumeClaim", "c"),
        ({"router": {"apiKeysSecretRef": {"name": "keys"}}}, "Secret", "keys"),
    ],
)
def test_what_somebody_else_must_create_is_looked_up(
    spec: dict[str, Any], kind: str, name: str
) -> None:
    [key] = referenced_objects(make_deployment(**spec))

    assert (key.kind, key.name, key.namespace) == (kind, name, "default")


def test_a_bad_image_is_told_with_the_kubelets_words() -> None:
    cluster = settled(replicas=2)
    fail(cluster.pods["demo-engine-1"], "ImagePullBackOff", "pull access denied for x")

    made = cluster.plan()

    assert verdict(made, "Degraded") == ("True", "PodsFailing")
    assert (
        "demo-engine-1: ImagePullBackOff: pull access denied for x"
        in (condition(made, "Degraded")["message"])
    )
    assert made.status["phase"] == "Degraded"
    assert made.status["replicaStatuses"][1]["message"].startswith("ImagePullBackOff")


def test_a_crashing_engine_is_told_with_its_last_words() -> None:
    cluster = SimulatedCluster(make_deployment())
    cluster.reconcile()
    cluster.run_controllers()
    fail(cluster.pods["demo-engine-0"], "CrashLoopBackOff", "back-off", last="a\nno such model")

    made = cluster.plan()

    assert "CrashLoopBackOff: no such model" in condition(made, "WorkloadAvailable")["message"]
    assert made.status["phase"] == "Failed"


def test_a_lost_replica_is_degraded_and_not_a_new_rollout() -> None:
    cluster = settled(replicas=3)
    del cluster.pods["demo-engine-1"]

    made = cluster.plan()

    assert verdict(made, "Ready") == ("True", "Ready")
    assert verdict(made, "Progressing") == ("True", "RolloutComplete")
    assert verdict(made, "Degraded") == ("True", "ReplicasUnavailable")
    assert made.status["phase"] == "Degraded"
    assert not any(m["kind"] == "StatefulSet" for m in made.objects if cluster._is_new(m))


def test_a_start_is_not_degraded() -> None:
    cluster = SimulatedCluster(make_deployment(replicas=2))
    cluster.reconcile()
    cluster.run_controllers()

    made = cluster.plan()

    assert verdict(made, "Degraded") == ("False", "AsExpected")
    assert made.status["phase"] == "Loading"


def test_a_suspended_deployment_keeps_its_services_and_stops_its_pods() -> None:
    cluster = settled(replicas=2)

    cluster.change_spec(suspend=True)
    made = cluster.settle()

    assert not cluster.pods
    assert cluster.child("Service", "demo")
    assert cluster.child("Deployment", "demo-router")["spec"]["replicas"] == 0
    assert verdict(made, "Ready") == ("False", "Suspended")
    assert cluster.deployment["status"]["phase"] == "Suspended"


def test_the_pause_annotation_stops_every_write_but_status() -> None:
    cluster = settled(replicas=2)
    cluster.deployment["metadata"]["annotations"] = {"quire.dev/paused": "true"}
    cluster.change_spec(replicas=5)

    made = cluster.plan()

    assert not made.objects
    assert not made.deletions
    assert verdict(made, "ReconciliationPaused") == ("True", "PausedByAnnotation")
    assert (
        "kubectl annotate llmd demo quire.dev/paused-"
        in (condition(made, "ReconciliationPaused")["message"])
    )


def test_a_deployment_that_is_deleted_gets_nothing_more() -> None:
    cluster = settled()
    cluster.deployment["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    made = cluster.plan()

    assert not made.objects
    assert made.status["phase"] == "Terminating"


def test_scaling_to_zero_says_how_to_start_again() -> None:
    cluster = settled()

    cluster.change_spec(replicas=0)
    made = cluster.settle()

    assert verdict(made, "Ready") == ("False", "ScaledToZero")
    assert "kubectl scale llmd demo --replicas=1" in condition(made, "Ready")["message"]


def capacity_of(*nodes: Any, **spec: Any) -> tuple[str, str, str]:
    made = SimulatedCluster(make_deployment(**spec), nodes=nodes).plan()
    found = condition(made, "CapacityAvailable")
    return found["status"], found["reason"], found["message"]


def test_capacity_is_there_on_nodes_that_fit() -> None:
    status, reason, message = capacity_of(make_node("a"))

    assert (status, reason) == ("True", "Fits")
    assert "1 of 1 node" in message


@pytest.mark.parametrize(
    ("node", "spec", "reason", "words"),
    [
        (
            make_node("a", product="NVIDIA-A10", gpus=4),
            {"model": {"source": "hf://x/Llama-3.3-70B-Instruct"}},
            "VRAMTooSmall",
            "GiB",
        ),
        (
            make_node("a", product="NVIDIA-L40S", gpus=8),
            {"parallelism": {"tensor": 4}},
            "NoNVLinkNodes",
            "NVLink",
        ),
        (
            make_node("a"),
            {"placement": {"nodeSelector": {"pool": "b"}}},
            "NoEligibleNodes",
            "placement.nodeSelector",
        ),
        (make_node("a", gpus=2), {"replicas": 3}, "NotEnoughFreeGPUs", "3 are wanted"),
    ],
)
def test_capacity_that_is_missing_is_explained(
    node: Any, spec: dict[str, Any], reason: str, words: str
) -> None:
    status, found, message = capacity_of(node, **spec)

    assert (status, found) == ("False", reason)
    assert words in message


def test_capacity_warns_and_overrides_nothing() -> None:
    cluster = SimulatedCluster(make_deployment(), nodes=(make_node("a", gpus=0),))

    made = cluster.plan()

    assert "StatefulSet" in kinds(made)
    assert engine(made)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_schedulers_words_are_passed_on() -> None:
    cluster = SimulatedCluster(make_deployment())
    cluster.reconcile()
    cluster.run_controllers()
    cannot_be_scheduled(cluster.pods["demo-engine-0"], "0/1 nodes: 1 Insufficient nvidia.com/gpu.")

    made = cluster.plan()

    assert verdict(made, "CapacityAvailable") == ("False", "NotEnoughFreeGPUs")
    assert "Insufficient nvidia.com/gpu" in condition(made, "CapacityAvailable")["message"]
    assert verdict(made, "Ready") == ("False", "InsufficientCapacity")
    assert made.status["phase"] == "Scheduling"


def test_the_capacity_check_can_be_skipped() -> None:
    deployment = make_deployment()
    deployment["metadata"]["annotations"] = {"quire.dev/skip-capacity-check": "true"}

    made = SimulatedCluster(deployment, nodes=(make_node("a", gpus=0),)).plan()

    assert verdict(made, "CapacityAvailable") == ("Unknown", "Unknown")


def test_stated_sizes_win_over_the_name() -> None:
    sizing = {"weights": "200Gi", "kvBytesPerToken": 100_000}
    model = {"source": "hf://x/tiny-1B", "sizing": sizing, "maxModelLen": 4096}

    status, reason, _ = capacity_of(make_node("a"), model=model)

    assert (status, reason) == ("False", "VRAMTooSmall")


def test_a_first_look_has_no_news_but_what_was_made() -> None:
    made = SimulatedCluster(make_deployment()).plan()

    assert [event.reason for event in (*made.events, *made.news)] == ["Created"]
    assert "StatefulSet demo-engine" in made.events[0].message


def test_becoming_ready_is_told_once_and_speaks_for_all_that_went_well() -> None:
    cluster = SimulatedCluster(make_deployment())
    seen = []
    for _ in range(6):
        seen += [(event.type, event.reason) for event in cluster.reconcile().news]
        cluster.run_controllers()
        cluster.make_ready()

    assert seen == [("Normal", "Ready")]


def test_what_keeps_a_deployment_from_being_ready_is_told_once() -> None:
    made = SimulatedCluster(make_deployment(), nodes=(make_node("a", gpus=0),)).plan()

    assert [(event.type, event.reason) for event in made.news] == [("Warning", "NotEnoughFreeGPUs")]


def test_routers_must_all_come_up_once_and_may_lose_one_later() -> None:
    cluster = SimulatedCluster(make_deployment(router={"replicas": 2}))
    seen = []
    for num_ready in (1, 1, 2, 1):
        cluster.reconcile()
        cluster.run_controllers()
        cluster.make_ready()
        cluster.child("Deployment", "demo-router")["status"] = {"readyReplicas": num_ready}
        seen.append(verdict(cluster.plan(), "Ready"))

    not_yet = ("False", "RouterNotReady")
    assert seen == [not_yet, not_yet, ("True", "Ready"), ("True", "Ready")]


def test_every_reason_that_a_plan_gives_is_listed() -> None:
    clusters = [settled(), settled(suspend=True), settled(replicas=0)]
    clusters += [SimulatedCluster(make_deployment(model={"source": "s3://x/y"}))]
    clusters += [SimulatedCluster(make_deployment(), settings=OperatorSettings(), nodes=())]

    for cluster in clusters:
        for entry in cluster.plan().status["conditions"]:
            assert entry["reason"] in CONDITION_REASONS[entry["type"]]
            assert entry["message"]
