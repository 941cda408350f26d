"""Events: what changed between what was and what the plan says. A steady state has none."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quire_operator.api import Condition
from quire_operator.api.conditions import NEGATIVE, PROGRESSING, READY, TRUE, UNKNOWN
from quire_operator.plan.contract import Deletion, Event, Manifest, ObjectKey, object_key
from quire_operator.plan.labels import SPEC_HASH_ANNOTATION

MAX_MESSAGE = 1000
"""Kubernetes takes 1024 bytes."""


def condition_events(
    conditions: Iterable[Condition], previous: Iterable[Mapping[str, Any]]
) -> list[Event]:
    """Return one event for each condition whose status changed; rollouts also tell their stages.

    At first sight only bad news are news. Ready sums up the others: it speaks for all that went
    well, and is silent where it only repeats what is wrong.
    """
    before = {entry.get("type"): entry for entry in previous}
    news = [item for item in conditions if _is_news(item, before.get(item.type))]
    if any(item.type == READY and item.is_good for item in news):
        news = [item for item in news if item.type == READY or not item.is_good]
    causes = {item.message for item in news if item.type != READY}
    return [
        Event("Normal" if item.is_good else "Warning", item.reason, _text(item))
        for item in news
        if item.type != READY or item.message not in causes
    ]


def child_events(
    objects: Sequence[Manifest],
    deletions: Sequence[Deletion],
    children: Mapping[ObjectKey, Manifest],
) -> list[Event]:
    """Return what the plan creates, changes and deletes, one event for each verb."""
    created, updated = [], []
    for manifest in objects:
        key = object_key(manifest)
        live = children.get(key)
        if live is None:
            created.append(key)
        elif _hash(live) != _hash(manifest):
            updated.append(key)
    groups: dict[str, list[ObjectKey]] = {"Created": created, "Updated": updated}
    for deletion in deletions:
        verb = "Replaced" if deletion.key.kind == "Pod" else "Deleted"
        groups.setdefault(verb, []).append(deletion.key)
    return [Event("Normal", verb, _list(verb, keys)) for verb, keys in groups.items() if keys]


def _is_news(condition: Condition, before: Mapping[str, Any] | None) -> bool:
    if condition.status == UNKNOWN:
        return False
    if before is None:
        return not condition.is_good and not _is_expected_at_first(condition)
    if condition.type == PROGRESSING and condition.reason != before.get("reason"):
        return True
    return condition.status != before.get("status")


def _is_expected_at_first(condition: Condition) -> bool:
    """Nothing is ready in the first moment, and nobody needs to be told."""
    return condition.type not in NEGATIVE and condition.reason in (
        "PodsNotReady",
        "MinimumReplicasUnavailable",
        "WaitingForModel",
        "ModelDownloading",
        "Downloading",
        "ScaledToZero",
        "Suspended",
    )


def _text(condition: Condition) -> str:
    verdict = condition.type if condition.status == TRUE else f"not {condition.type}"
    return f"{verdict}: {condition.message}"[:MAX_MESSAGE]


def _list(verb: str, keys: Sequence[ObjectKey]) -> str:
    return f"{verb} " + ", ".join(f"{key.kind} {key.name}" for key in keys)[:MAX_MESSAGE]


def _hash(manifest: Manifest) -> str | None:
    annotations: Mapping[str, str] = manifest["metadata"].get("annotations") or {}
    return annotations.get(SPEC_HASH_ANNOTATION)
