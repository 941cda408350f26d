"""What tests ask of a plan."""

from typing import Any

from quire_operator.plan import Manifest, ObjectKey, Plan
from simulated_cluster import NAMESPACE, SimulatedCluster, make_deployment

Json = dict[str, Any]


def condition(plan: Plan, type_: str) -> Json:
    """Return one condition of a plan's status."""
    found: Json = next(entry for entry in plan.status["conditions"] if entry["type"] == type_)
    return found


def verdict(plan: Plan, type_: str) -> tuple[str, str]:
    """Return a condition's status and reason."""
    found = condition(plan, type_)
    return found["status"], found["reason"]


def child(plan: Plan, kind: str, name: str = "") -> Json:
    """Return the object of a kind; the name is needed where there are several."""
    return next(
        manifest
        for manifest in plan.objects
        if manifest["kind"] == kind and name in ("", manifest["metadata"]["name"])
    )


def kinds(plan: Plan) -> set[str]:
    """Return the kinds of the objects that a plan applies."""
    return {manifest["kind"] for manifest in plan.objects}


def engine(plan: Plan) -> Json:
    """Return the engine's container."""
    template = child(plan, "StatefulSet")["spec"]["template"]
    found: Json = template["spec"]["containers"][0]
    return found


def settled(**spec: Any) -> SimulatedCluster:
    """Return a cluster in which a deployment is ready."""
    cluster = SimulatedCluster(make_deployment(**spec))
    cluster.settle()
    return cluster


def secret(name: str) -> ObjectKey:
    return ObjectKey("v1", "Secret", NAMESPACE, name)


def fail(pod: Manifest, reason: str, message: str = "", *, last: str = "") -> None:
    """Let a pod's container wait for a reason, after it said something."""
    waiting = {"reason": reason, "message": message}
    state: Json = {"state": {"waiting": waiting}, "restartCount": 1 if last else 0}
    if last:
        state["lastState"] = {"terminated": {"exitCode": 1, "message": last}}
    pod["status"] = {"phase": "Pending", "containerStatuses": [state]}


def cannot_be_scheduled(pod: Manifest, message: str) -> None:
    """Let the scheduler find no node for a pod."""
    verdict_ = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pod["status"] = {"phase": "Pending", "conditions": [verdict_ | {"message": message}]}
    pod["spec"].pop("nodeName", None)
