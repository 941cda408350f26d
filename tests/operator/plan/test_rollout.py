from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from quire_operator.api import parse_timestamp
from quire_operator.plan import Plan
from quire_operator.plan.rollout import max_unavailable
from simulated_cluster import SimulatedCluster, make_deployment


def condition(plan: Plan, type_: str) -> dict[str, str]:
    return next(entry for entry in plan.status["conditions"] if entry["type"] == type_)


def running(**spec: Any) -> SimulatedCluster:
    cluster = SimulatedCluster(make_deployment(**spec))
    cluster.settle()
    return cluster


def change_image(cluster: SimulatedCluster, tag: str = "new") -> None:
    cluster.change_spec(engine={"image": f"example.com/engine:{tag}"})


def test_a_new_deployment_becomes_ready_and_then_rests() -> None:
    cluster = SimulatedCluster(make_deployment(replicas=2))

    made = cluster.settle()

    assert condition(made, "Ready")["status"] == "True"
    assert cluster.deployment["status"]["phase"] == "Ready"
    assert cluster.is_steady()


def test_a_rollout_replaces_each_pod_once_and_never_more_than_the_budget() -> None:
    cluster = running(replicas=4, rollout={"maxUnavailable": 2})
    made_before, old = cluster.num_pods_made, set(cluster.revisions().values())

    change_image(cluster)
    for _ in range(20):
        cluster.reconcile()
        cluster.run_controllers()
        assert cluster.num_ready() >= 2
        cluster.make_ready()
    assert cluster.is_steady()

    assert cluster.num_pods_made - made_before == 4
    assert old.isdisjoint(cluster.revisions().values())


def test_an_image_change_replaces_the_last_replica_first() -> None:
    cluster = running(replicas=3)

    change_image(cluster)
    cluster.reconcile()
    cluster.run_controllers()
    made = cluster.reconcile()

    assert [d.key.name for d in made.deletions] == ["demo-engine-2"]
    assert made.deletions[0].reason == "new revision"


def test_broken_replicas_are_replaced_first_and_cost_nothing_of_the_budget() -> None:
    cluster = running(replicas=3)
    cluster.pods["demo-engine-0"]["status"] = {"phase": "Pending"}

    change_image(cluster)
    cluster.reconcile()
    cluster.run_controllers()
    made = cluster.reconcile()

    assert [d.key.name for d in made.deletions] == ["demo-engine-0"]


def test_replicas_on_nodes_out_of_reach_are_not_taken_for_broken() -> None:
    cluster = running(replicas=3)
    for pod in cluster.pods.values():
        pod["status"]["conditions"][0]["status"] = "Unknown"
        pod["status"]["containerStatuses"] = [{"ready": True, "restartCount": 0}]

    change_image(cluster)
    cluster.reconcile()
    cluster.run_controllers()

    assert not cluster.reconcile().deletions


def test_a_bad_image_stops_after_the_budget_and_its_fix_goes_through() -> None:
    cluster = running(replicas=3)

    change_image(cluster, "bad")
    for _ in range(10):
        cluster.reconcile()
        cluster.run_controllers()
    assert cluster.num_ready() == 2

    change_image(cluster, "good")
    cluster.settle()
    assert cluster.num_ready() == 3
    assert condition(cluster.plan(), "Progressing")["reason"] == "RolloutComplete"


def test_pods_below_the_partition_keep_their_revision_even_when_they_are_replaced() -> None:
    cluster = running(replicas=3, rollout={"partition": 2})
    before = cluster.revisions()

    change_image(cluster)
    made = cluster.settle()
    del cluster.pods["demo-engine-0"]
    cluster.settle()

    after = cluster.revisions()
    assert after["demo-engine-2"] != before["demo-engine-2"]
    assert {n: after[n] for n in ("demo-engine-0", "demo-engine-1")} == {
        n: before[n] for n in ("demo-engine-0", "demo-engine-1")
    }
    assert condition(made, "Ready")["status"] == "True"
    assert cluster.deployment["status"]["updatedReplicas"] == 1
    assert cluster.deployment["status"]["availableReplicas"] == 3


def test_a_partition_that_is_lowered_lets_the_rest_follow() -> None:
    cluster = running(replicas=3, rollout={"partition": 2})
    change_image(cluster)
    cluster.settle()

    cluster.change_spec(rollout={"partition": 0})
    cluster.settle()

    assert len(set(cluster.revisions().values())) == 1
    assert cluster.deployment["status"]["updatedReplicas"] == 3


def test_recreate_replaces_all_at_once() -> None:
    cluster = running(replicas=3, rollout={"strategy": "Recreate"})

    change_image(cluster)
    cluster.reconcile()
    cluster.run_controllers()
    made = cluster.reconcile()

    assert len(made.deletions) == 3


def test_old_pods_that_are_ready_do_not_make_a_new_revision_ready() -> None:
    cluster = running(replicas=2)

    change_image(cluster)
    made = cluster.reconcile()

    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Updating")
    assert condition(made, "WorkloadAvailable")["status"] == "True"
    assert made.status["readyReplicas"] == 2
    assert made.status["updatedReplicas"] == 0


def test_scaling_restarts_nothing() -> None:
    cluster = running(replicas=2)
    uids = {name: pod["metadata"]["uid"] for name, pod in cluster.pods.items()}

    cluster.change_spec(replicas=4)
    cluster.settle()

    assert len(cluster.pods) == 4
    assert all(cluster.pods[name]["metadata"]["uid"] == uid for name, uid in uids.items())
    assert "lastScaleTime" in cluster.deployment["status"]


def test_a_rollout_without_progress_is_reported_after_the_deadline() -> None:
    cluster = running(replicas=2, rollout={"progressDeadlineSeconds": 600})
    change_image(cluster)
    for _ in range(4):
        cluster.reconcile()
        cluster.run_controllers()

    early = cluster.plan()
    cluster.pass_time(601)
    late = cluster.plan()

    assert condition(early, "Progressing")["reason"] == "NewRevision"
    assert early.requeue_after_s == pytest.approx(601, abs=2)
    assert condition(late, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert [event.reason for event in late.news] == ["ProgressDeadlineExceeded"]
    assert cluster.deployment["status"]["phase"] == "Updating"
    assert late.status["phase"] == "Degraded"


def test_transition_times_change_only_with_the_status() -> None:
    cluster = running(replicas=2)
    since = condition(cluster.plan(), "Ready")["lastTransitionTime"]

    cluster.pass_time(3600)
    del cluster.pods["demo-engine-1"]
    cluster.settle()

    assert condition(cluster.plan(), "Ready")["lastTransitionTime"] == since
    moment = parse_timestamp(since)
    assert moment is not None
    assert cluster.now - moment > timedelta(hours=1)


@pytest.mark.parametrize(
    ("wanted", "total", "most"),
    [(1, 4, 1), ("25%", 4, 1), ("25%", 3, 1), ("50%", 5, 2), ("100%", 5, 5), (7, 2, 7)],
)
def test_max_unavailable_rounds_percentages_down_to_one_at_least(
    wanted: int | str, total: int, most: int
) -> None:
    assert max_unavailable(wanted, total) == most


@settings(max_examples=60)
@given(
    replicas=st.integers(1, 5),
    most=st.integers(1, 3),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("reconcile"), st.integers(0, 12)),
            st.tuples(st.just("controllers"), st.just(0)),
            st.tuples(st.just("ready"), st.integers(0, 4)),
        ),
        max_size=25,
    ),
)
def test_an_operator_killed_at_any_write_keeps_the_budget_and_restarts_no_pod_twice(
    replicas: int, most: int, steps: list[tuple[str, int]]
) -> None:
    cluster = running(replicas=replicas, rollout={"maxUnavailable": most})
    made_before = cluster.num_pods_made
    change_image(cluster)

    for action, number in steps:
        match action:
            case "reconcile":
                cluster.reconcile(max_writes=number)
            case "controllers":
                cluster.run_controllers()
            case _:
                name = f"demo-engine-{number % replicas}"
                if name in cluster.pods:
                    cluster.make_ready(name)
        assert cluster.num_ready() >= replicas - most
    cluster.settle()

    assert cluster.num_pods_made - made_before == replicas
    assert len(set(cluster.revisions().values())) == 1
