"""How far the weights are: the condition ModelCached and status.cache."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api import Condition
from quire_operator.api.conditions import FALSE, MODEL_CACHED, TRUE
from quire_operator.plan.context import Context
from quire_operator.plan.labels import WEIGHTS
from quire_operator.plan.pods import Pod
from quire_operator.plan.replicas import read_pods
from quire_operator.plan.weights import (
    IMAGE_VOLUME_VERSION,
    cache_type,
    claim_name,
    job_name,
    prefetch,
)

_AUTH_WORDS = ("401", "403", "gated", "unauthorized", "forbidden", "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Where the weights are."""

    condition: Condition
    phase: str
    started_at: str | None = None
    completed_at: str | None = None
    message: str = ""
    num_bytes: int | None = None
    """Size of the model on disk, as the job reported."""
    config: Mapping[str, Any] | None = None
    """The model's config.json, as the job reported."""

    @property
    def is_done(self) -> bool:
        """Whether engines may start."""
        return self.condition.is_true

    @property
    def is_failed(self) -> bool:
        return self.phase == "Failed"


def read_download(ctx: Context) -> Download:
    """Judge the download by its job."""
    if prefetch(ctx) != "Job":
        return _done("NotRequired", "NotRequired", _own_download(ctx))
    job = ctx.live("batch/v1", "Job", job_name(ctx))
    if job is None:
        return _waiting(f"job {job_name(ctx)} is about to start")
    status = job.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    times = {"started_at": status.get("startTime"), "completed_at": status.get("completionTime")}
    if conditions.get("Complete", {}).get("status") == "True":
        text = f"{ctx.spec.model.source} is on claim {claim_name(ctx)}"
        return _done("Cached", "Cached", text, **times, **_reported(ctx))
    detail = _trouble(ctx)
    if conditions.get("Failed", {}).get("status") == "True":
        return _failed(ctx, detail or conditions["Failed"].get("message", ""), times)
    text = f"job {job_name(ctx)} downloads {ctx.spec.model.source} to claim {claim_name(ctx)}"
    return _waiting(f"{text}: {detail}" if detail else text, **times)


def _own_download(ctx: Context) -> str:
    match prefetch(ctx), cache_type(ctx):
        case "InitContainer", _:
            return "each pod fetches what is missing before its engine starts"
        case _, "Image" if ctx.observed.server_version < IMAGE_VOLUME_VERSION:
            version = ".".join(map(str, IMAGE_VOLUME_VERSION))
            return (
                f"the weights are an image volume; Kubernetes before {version} needs the feature "
                "gate ImageVolume for it"
            )
        case _, "Image" | "None":
            return f"nothing is downloaded from {ctx.source.scheme}://"
    return "each engine downloads the model when it starts; spec.cache.type PVC would do so once"


def _trouble(ctx: Context) -> str:
    """Return what keeps the job's pods from it, the newest pod's word first."""
    for pod in _job_pods(ctx):
        if text := pod.failing or pod.last_words or pod.unschedulable:
            return text
    return ""


def _reported(ctx: Context) -> dict[str, Any]:
    """Return what `quire fetch --report` said: there are other images, and older ones."""
    for pod in _job_pods(ctx):
        try:
            report = json.loads(pod.report)
        except ValueError:
            continue
        if isinstance(report, dict):
            num_bytes, config = report.get("bytes"), report.get("config")
            return {
                "num_bytes": num_bytes if isinstance(num_bytes, int) else None,
                "config": config if isinstance(config, dict) else None,
            }
    return {}


def _job_pods(ctx: Context) -> list[Pod]:
    """Return the job's pods, the newest first."""
    pods = [pod for pod in read_pods(ctx.observed.pods, WEIGHTS) if pod.owner == job_name(ctx)]
    return sorted(pods, key=lambda pod: (_made_at(pod), pod.name), reverse=True)


def _made_at(pod: Pod) -> float:
    """Return when a pod was made, for sorting."""
    return pod.created_at.timestamp() if pod.created_at else 0.0


def _failed(ctx: Context, detail: str, times: dict[str, Any]) -> Download:
    is_auth = any(word in detail.lower() for word in _AUTH_WORDS)
    step = (
        "set spec.model.tokenSecretRef to a Secret with a token that may read it, then"
        if is_auth
        else "see `kubectl logs` of its pods, then"
    )
    message = (
        f"the download failed: {detail or 'no reason is known'}; {step} "
        f"`kubectl delete job {job_name(ctx)}` tries again"
    )
    reason = "AuthFailed" if is_auth else "DownloadFailed"
    condition = Condition(MODEL_CACHED, FALSE, reason, message)
    return Download(condition=condition, phase="Failed", message=message, **times)


def _waiting(message: str, **times: Any) -> Download:
    condition = Condition(MODEL_CACHED, FALSE, "Downloading", message)
    return Download(condition=condition, phase="Downloading", message=message, **times)


def _done(reason: str, phase: str, message: str, **times: Any) -> Download:
    return Download(condition=Condition(MODEL_CACHED, TRUE, reason, message), phase=phase, **times)
