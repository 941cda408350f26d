from typing import Any

import pytest

from quire_operator.plan import Manifest
from simulated_cluster import START, SimulatedCluster, make_deployment

GROUP: dict[str, Any] = {"parallelism": {"tensor": 16, "nodesPerReplica": 2}}


def running(**spec: Any) -> SimulatedCluster:
    cluster = SimulatedCluster(make_deployment(**GROUP, **spec))
    cluster.settle()
    return cluster


def test_a_group_is_a_stateful_set_and_a_service_for_each_replica() -> None:
    cluster = running(replicas=2)

    assert sorted(cluster.pods) == ["demo-r0-0", "demo-r0-1", "demo-r1-0", "demo-r1-1"]
    assert cluster.child("Service", "demo-r1")["spec"]["publishNotReadyAddresses"] is True
    assert cluster.deployment["status"]["readyReplicas"] == 2


def test_only_the_first_pod_of_a_group_stands_for_the_replica() -> None:
    cluster = running(replicas=2)

    selector = cluster.deployment["status"]["selector"]
    assert selector.endswith("apps.kubernetes.io/pod-index=0")
    budget = cluster.child("PodDisruptionBudget", "demo-engine")["spec"]["selector"]
    assert budget["matchLabels"]["apps.kubernetes.io/pod-index"] == "0"


def test_pods_of_a_group_ask_for_their_share_of_gpus_and_know_their_rank() -> None:
    cluster = running(replicas=1)

    pod = cluster.pods["demo-r0-1"]["spec"]
    engine = pod["containers"][0]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "--node-rank=$(QUIRE_NODE_RANK)" in engine["args"]
    assert "--master-addr=demo-r0-0.demo-r0.default.svc.cluster.local" in engine["args"]
    assert cluster.deployment["status"]["gpus"]["requested"] == 16


def test_groups_are_packed_by_nvlink_domain_on_nodes_of_their_own() -> None:
    cluster = running(replicas=1)

    affinity = cluster.pods["demo-r0-0"]["spec"]["affinity"]
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    [together] = affinity["podAffinity"][required]
    [apart] = affinity["podAntiAffinity"][required]
    assert together["topologyKey"] == "nvidia.com/gpu.clique"
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert together["labelSelector"] == apart["labelSelector"]


def test_a_rollout_replaces_groups_as_a_whole_and_one_at_a_time() -> None:
    cluster = running(replicas=2)
    cluster.change_spec(engine={"image": "example.com/engine:new"})

    cluster.reconcile()
    cluster.run_controllers()
    made = cluster.reconcile()

    assert [d.key.name for d in made.deletions] == ["demo-r1-0", "demo-r1-1"]
    before = cluster.num_pods_made
    cluster.settle()
    assert cluster.num_pods_made - before == 4
    assert cluster.is_steady()


def test_groups_below_the_partition_keep_their_stateful_set() -> None:
    cluster = running(replicas=2, rollout={"partition": 1})
    old = cluster.child("StatefulSet", "demo-r0")["spec"]

    cluster.change_spec(engine={"image": "example.com/engine:new"})
    cluster.settle()

    assert cluster.child("StatefulSet", "demo-r0")["spec"] == old
    assert cluster.child("StatefulSet", "demo-r1")["spec"] != old
    assert cluster.deployment["status"]["phase"] == "Ready"


def restart_container(pod: Manifest) -> None:
    pod["status"] |= {"containerStatuses": [{"restartCount": 1, "state": {"running": {}}}]}


def test_a_group_of_which_a_member_restarted_is_replaced_as_a_whole() -> None:
    cluster = running(replicas=2)
    cluster.pass_time(120)
    restart_container(cluster.pods["demo-r0-1"])

    made = cluster.reconcile()

    assert [d.key.name for d in made.deletions] == ["demo-r0-0", "demo-r0-1"]
    assert {d.reason for d in made.deletions} == {"group restart"}
    cluster.settle()
    assert cluster.deployment["status"]["readyReplicas"] == 2


def test_a_group_of_which_a_member_was_replaced_is_replaced_as_a_whole() -> None:
    cluster = running(replicas=1)
    cluster.pass_time(300)
    del cluster.pods["demo-r0-1"]
    cluster.run_controllers()
    cluster.pass_time(61)

    made = cluster.plan()

    assert [d.key.name for d in made.deletions] == ["demo-r0-0", "demo-r0-1"]


def test_a_group_that_has_just_started_is_not_restarted_yet() -> None:
    cluster = running(replicas=1)
    restart_container(cluster.pods["demo-r0-1"])

    made = cluster.plan()

    assert not made.deletions
    assert made.requeue_after_s == 60


def test_scaling_down_removes_the_last_groups() -> None:
    cluster = running(replicas=3)

    cluster.change_spec(replicas=1)
    cluster.settle()

    assert sorted(cluster.pods) == ["demo-r0-0", "demo-r0-1"]


@pytest.mark.parametrize(
    ("api", "kind_of_group", "where"),
    [
        ("scheduling.k8s.io/v1beta1", "PodGroup", ["spec", "schedulingGroup"]),
        ("scheduling.volcano.sh/v1beta1", "Volcano", ["metadata", "annotations"]),
        ("scheduling.x-k8s.io/v1alpha1", "Coscheduling", ["metadata", "labels"]),
    ],
)
def test_groups_are_scheduled_together_by_what_the_cluster_offers(
    api: str, kind_of_group: str, where: list[str]
) -> None:
    apis = frozenset({(api, "PodGroup")})
    cluster = SimulatedCluster(make_deployment(**GROUP, replicas=1), apis=apis)
    cluster.settle()

    group = cluster.child("PodGroup", "demo-r0")
    live = cluster.child("StatefulSet", "demo-r0")
    assert group["apiVersion"] == api
    assert live["metadata"]["annotations"]["quire.dev/gang"] == kind_of_group
    part = live["spec"]["template"][where[0]][where[1]]
    assert "demo-r0" in part.values()


def test_a_scheduler_that_is_installed_later_restarts_nothing() -> None:
    cluster = running(replicas=1)
    cluster.surroundings["apis"] = frozenset({("scheduling.volcano.sh/v1beta1", "PodGroup")})

    assert cluster.is_steady()


def test_an_operator_whose_engine_runs_on_one_node_refuses_groups() -> None:
    cluster = SimulatedCluster(make_deployment(**GROUP))
    from quire_operator.plan import OperatorSettings

    cluster.settings = OperatorSettings()
    made = cluster.plan()

    accepted = next(c for c in made.status["conditions"] if c["type"] == "Accepted")
    assert accepted["reason"] == "UnsupportedFeature"
    assert "use tensor alone" in accepted["message"]
    assert not made.objects
    assert cluster.now == START
