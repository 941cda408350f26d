"""Facts of one pod, out of its manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from quire_operator.api import parse_timestamp
from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import (
    COMPONENT_LABEL,
    REPLICA_LABEL,
    REVISION_LABEL,
    TEMPLATE_HASH_ANNOTATION,
)

_FAILING = frozenset(
    {
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Reasons of a waiting container that time alone does not mend."""
MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod, as far as plans go."""

    name: str
    uid: str
    component: str
    owner: str
    """Name of the controller that made it."""
    ordinal: int
    """Its index in a StatefulSet; -1 for others."""
    replica: int
    """The group that it belongs to; -1 for single pods."""
    revision: str
    """Its StatefulSet's name for the template that it was made from."""
    template_hash: str
    """Our hash of that template."""
    node: str
    is_ready: bool
    is_terminating: bool
    is_failed: bool
    """It ended, as after an eviction: its controller makes another one once it is gone."""
    is_running: bool
    """Its first container runs, ready or not."""
    is_cut_off: bool
    """Its containers were ready when its node was heard of last, and the node is silent since. It
    may well serve."""
    num_restarts: int
    created_at: datetime | None
    ready_at: datetime | None
    unschedulable: str
    """What the scheduler says, or ""."""
    failing: str
    """Why a container cannot run, for people, or ""."""
    last_words: str
    """The last line of a container that ended with an error, or ""."""
    report: str
    """The message of a container that ended well, or ""."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        metadata, spec, status = (manifest.get(k) or {} for k in ("metadata", "spec", "status"))
        labels = metadata.get("labels") or {}
        conditions = {c.get("type"): c for c in status.get("conditions") or ()}
        containers = [
            *(status.get("initContainerStatuses") or ()),
            *(status.get("containerStatuses") or ()),
        ]
        ready = conditions.get("Ready", {})
        name = metadata.get("name", "")
        owner = _controller(metadata)
        return cls(
            name=name,
            uid=metadata.get("uid", ""),
            component=labels.get(COMPONENT_LABEL, ""),
            owner=owner,
            ordinal=_ordinal(name, owner),
            replica=_number(labels.get(REPLICA_LABEL), absent=-1),
            revision=labels.get(REVISION_LABEL, ""),
            template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION, ""),
            node=spec.get("nodeName", ""),
            is_ready=ready.get("status") == "True",
            is_terminating="deletionTimestamp" in metadata,
            is_failed=status.get("phase") in ("Failed", "Succeeded"),
            is_running=any("running" in (c.get("state") or {}) for c in containers),
            is_cut_off=ready.get("status") != "True" and _were_ready(status),
            num_restarts=sum(c.get("restartCount", 0) for c in containers),
            created_at=parse_timestamp(metadata.get("creationTimestamp")),
            ready_at=parse_timestamp(ready.get("lastTransitionTime")),
            unschedulable=_unschedulable(conditions.get("PodScheduled", {})),
            failing=next(filter(None, map(_failure, containers)), ""),
            last_words=next(filter(None, map(_last_words, containers)), ""),
            report=next(filter(None, map(_report, containers)), ""),
        )

    @property
    def is_serving(self) -> bool:
        """Whether requests should go there."""
        return self.is_ready and not self.is_terminating


def _were_ready(status: Mapping[str, Any]) -> bool:
    """Tell whether all containers were ready by the kubelet's last word."""
    containers = status.get("containerStatuses") or ()
    return bool(containers) and all(container.get("ready") for container in containers)


def _controller(metadata: Mapping[str, Any]) -> str:
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference.get("name", ""))
    return ""


def _ordinal(name: str, owner: str) -> int:
    head, _, tail = name.rpartition("-")
    return _number(tail, absent=-1) if owner and head == owner else -1


def _number(text: Any, *, absent: int) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else absent


def _unschedulable(condition: Mapping[str, Any]) -> str:
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return ""
    return str(condition.get("message") or "no node can take it")[:MAX_MESSAGE]


def _failure(container: Mapping[str, Any]) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason not in _FAILING:
        return ""
    detail = _last_words(container) if reason == "CrashLoopBackOff" else ""
    detail = detail or _last_line(waiting.get("message"))
    return f"{reason}: {detail}" if detail else str(reason)


def _last_words(container: Mapping[str, Any]) -> str:
    for state in ("state", "lastState"):
        ended = (container.get(state) or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _last_line(ended.get("message")) or str(ended.get("reason", ""))
    return ""


def _report(container: Mapping[str, Any]) -> str:
    ended = (container.get("state") or {}).get("terminated") or {}
    return str(ended.get("message") or "") if ended.get("exitCode") == 0 else ""


def _last_line(text: Any) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[-1][:MAX_MESSAGE] if lines else ""
