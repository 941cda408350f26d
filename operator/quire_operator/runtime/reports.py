"""What a status says beyond its plan: that the server refused an object."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from quire_operator.errors import ForbiddenError, InvalidError, KubeError, NotFoundError
from quire_operator.plan import Manifest, ObjectKey

APPLIED = "Applied"
"""Condition type: every object of the plan is in the cluster as planned."""
_MAX_MESSAGE = 2000


def with_apply_errors(
    status: Manifest, deployment: Manifest, errors: Mapping[ObjectKey, KubeError], now: datetime
) -> Manifest:
    """Add the condition `Applied=False` for objects that the server refused.

    Without errors the condition is left out, and so goes away with the next write of the status.
    """
    others = [item for item in status.get("conditions") or [] if item["type"] != APPLIED]
    if not errors:
        had = len(others) != len(status.get("conditions") or [])
        return status | {"conditions": others} if had else status
    condition = {
        "type": APPLIED,
        "status": "False",
        "reason": _reason(errors),
        "message": _message(errors)[:_MAX_MESSAGE],
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "lastTransitionTime": _since(deployment, now),
    }
    return status | {"conditions": [*others, condition]}


def status_patch(live: Manifest, wanted: Manifest) -> Manifest:
    """Return the merge patch that turns one status into another; {} if they are equal."""
    gone = {name: None for name in live if name not in wanted}
    changed = {name: _merge(live.get(name), value) for name, value in wanted.items()
               if name not in live or live[name] != value}  # fmt: skip
    return gone | changed


def is_news(live: Manifest, wanted: Manifest) -> bool:
    """Whether a report should not wait: another spec was seen, or it became Ready or unready.

    The rest is progress, which comes in many small steps.
    """
    return _headline(live) != _headline(wanted)


def _headline(status: Manifest) -> tuple[Any, ...]:
    conditions = {item["type"]: item["status"] for item in status.get("conditions") or ()}
    return status.get("observedGeneration"), conditions.get("Ready"), conditions.get(APPLIED)


def _merge(live: Any, wanted: Any) -> Any:
    if isinstance(live, dict) and isinstance(wanted, dict):
        return status_patch(live, wanted)
    return wanted


def _reason(errors: Mapping[ObjectKey, KubeError]) -> str:
    for error in errors.values():
        if isinstance(error, InvalidError) and "immutable" in str(error).lower():
            return "ImmutableFieldChanged"
        # How a StatefulSet words the same thing.
        if isinstance(error, InvalidError) and "updates to statefulset spec" in str(error):
            return "ImmutableFieldChanged"
    for type_, reason in _REASONS.items():
        if any(isinstance(error, type_) for error in errors.values()):
            return reason
    return "ApplyFailed"


_REASONS: dict[type[KubeError], str] = {
    ForbiddenError: "Forbidden",
    InvalidError: "Rejected",
    NotFoundError: "ApiMissing",
}


def _message(errors: Mapping[ObjectKey, KubeError]) -> str:
    said = "; ".join(f"{key.kind} {key.name}: {error}" for key, error in errors.items())
    return f"{said}. {_NEXT_STEPS[_reason(errors)]}"


_NEXT_STEPS = {
    "ImmutableFieldChanged": "Delete the named object to have it made anew with the change, "
    "or undo the change in the LLMDeployment",
    "Forbidden": "Raise the quota, or give the operator's account the missing right",
    "Rejected": "Correct the named field of the LLMDeployment",
    "ApiMissing": "Install the API, or turn the feature off",
    "ApplyFailed": "The operator tries again by itself",
}


def _since(deployment: Manifest, now: datetime) -> str:
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    for condition in conditions:
        if condition["type"] == APPLIED and condition["status"] == "False":
            return str(condition["lastTransitionTime"])
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
