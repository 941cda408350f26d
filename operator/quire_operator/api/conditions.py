"""Conditions of an LLMDeployment: the types, their reasons, and how they change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Status = Literal["True", "False", "Unknown"]

TRUE: Literal["True"] = "True"
FALSE: Literal["False"] = "False"
UNKNOWN: Literal["Unknown"] = "Unknown"

READY = "Ready"
ACCEPTED = "Accepted"
CAPACITY_AVAILABLE = "CapacityAvailable"
MODEL_CACHED = "ModelCached"
WORKLOAD_AVAILABLE = "WorkloadAvailable"
PROGRESSING = "Progressing"
ROUTER_READY = "RouterReady"
AUTOSCALER_READY = "AutoscalerReady"
RECONCILIATION_PAUSED = "ReconciliationPaused"
DEGRADED = "Degraded"

CONDITION_REASONS: Mapping[str, tuple[str, ...]] = {
    READY: (
        "Ready",
        "ModelDownloading",
        "InsufficientCapacity",
        "PodsNotReady",
        "Updating",
        "RouterNotReady",
        "SpecInvalid",
        "ReferenceNotFound",
        "ScaledToZero",
        "Suspended",
        "Terminating",
    ),
    ACCEPTED: (
        "Valid",
        "Invalid",
        "NameTooLong",
        "UnsupportedSource",
        "UnsupportedFeature",
        "ArgsConflict",
        "APINotInstalled",
        "ReferenceNotFound",
    ),
    CAPACITY_AVAILABLE: (
        "Fits",
        "NoEligibleNodes",
        "NoNVLinkNodes",
        "NotEnoughFreeGPUs",
        "VRAMTooSmall",
        "Unknown",
    ),
    MODEL_CACHED: ("Cached", "Downloading", "DownloadFailed", "AuthFailed", "NotRequired"),
    WORKLOAD_AVAILABLE: (
        "MinimumReplicasAvailable",
        "MinimumReplicasUnavailable",
        "ScaledToZero",
        "Suspended",
        "WaitingForModel",
    ),
    PROGRESSING: ("NewRevision", "RolloutComplete", "ProgressDeadlineExceeded", "Suspended"),
    ROUTER_READY: ("Ready", "PodsNotReady", "Disabled", "Suspended"),
    AUTOSCALER_READY: (
        "Ready",
        "CRDNotInstalled",
        "MetricsAPIMissing",
        "PrometheusAddressMissing",
        "Failing",
        "NotRequired",
    ),
    RECONCILIATION_PAUSED: ("NotPaused", "PausedByAnnotation"),
    DEGRADED: ("AsExpected", "ReplicasUnavailable", "PodsFailing"),
}
"""Every type in the order of status, with every reason that it can have."""

NEGATIVE = frozenset({RECONCILIATION_PAUSED, DEGRADED})
"""Types whose True is bad news, or at least news."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One judgement: type, status, one word why, and a sentence with the next step."""

    type: str
    status: Status
    reason: str
    message: str

    @property
    def is_true(self) -> bool:
        return self.status == TRUE

    @property
    def is_good(self) -> bool:
        """Whether nobody needs to act."""
        return self.status == (FALSE if self.type in NEGATIVE else TRUE)


def timestamp(moment: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: Any) -> datetime | None:
    """Return the time that Kubernetes wrote, or None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def merge_conditions(
    conditions: Iterable[Condition],
    previous: Iterable[Mapping[str, Any]],
    *,
    generation: int,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return status.conditions; lastTransitionTime changes only where the status does."""
    before = {entry.get("type"): entry for entry in previous}
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": _transition(condition, before.get(condition.type), now),
        }
        for condition in conditions
    ]


def _transition(condition: Condition, before: Mapping[str, Any] | None, now: datetime) -> str:
    if before and before.get("status") == condition.status:
        since = parse_timestamp(before.get("lastTransitionTime"))
        if since:
            return timestamp(since)
    return timestamp(now)
