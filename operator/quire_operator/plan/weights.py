"""Where weights are kept, and what fetches them.

    PVC + Job             one job fills the claim, engines mount it read-only afterwards
    PVC + InitContainer   each pod makes sure of it before its engine starts
    HostPath              the same with a folder of the node
    Ephemeral             the pod's own disk
    Image                 an image volume; nothing is fetched
    None                  the weights are where the source says

The job's name carries a hash of what it fetches: another model is another job. It stays when it is
done: its status is the record that the weights are there, besides the marker in the claim.
"""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest, ObjectKey
from quire_operator.plan.engine_flags import MODEL_FOLDER
from quire_operator.plan.hashing import hash_of
from quire_operator.plan.labels import TEMPLATE_HASH_ANNOTATION, WEIGHTS
from quire_operator.plan.placement import placement_fields
from quire_operator.plan.pod_parts import (
    CACHE_FOLDER,
    container_security,
    image_fields,
    pod_security,
    scratch_volumes,
    token_env,
)

WEIGHTS_FOLDER = f"{CACHE_FOLDER}/huggingface"
WEIGHTS_VOLUME = "weights"
MODEL_VOLUME = "model"
JOB_BACKOFF_LIMIT = 6
IMAGE_VOLUME_VERSION = (1, 35)
"""Kubernetes from which image volumes are on by default."""

Json = dict[str, Any]


def cache_type(ctx: Context) -> str:
    """Return the type of cache, with the default of the source's scheme."""
    return ctx.spec.cache.type or ctx.source.default_cache


def prefetch(ctx: Context) -> str:
    """Return who downloads: Job, InitContainer, or None, the engine itself."""
    if ctx.source.scheme != "hf":
        return "None"
    default = {"PVC": "Job", "HostPath": "InitContainer"}.get(cache_type(ctx), "None")
    return ctx.spec.cache.prefetch or default


def claim_name(ctx: Context) -> str:
    """Return the name of the claim that a cache of type PVC uses."""
    return ctx.spec.cache.existing_claim or f"{ctx.name}-weights"


def model_hash(ctx: Context) -> str:
    """Return what tells one download from another."""
    return hash_of([ctx.spec.model.source, ctx.spec.model.revision, claim_name(ctx)])


def job_name(ctx: Context) -> str:
    """Return the name of the job that fetches this model."""
    return f"{ctx.name}-weights-{model_hash(ctx)[:8]}"


def weights_volumes(ctx: Context) -> list[Json]:
    """Return the volumes with weights of an engine's pod."""
    source, cache = ctx.source, ctx.spec.cache
    if source.scheme == "pvc":
        claim = {"claimName": source.claim, "readOnly": True}
        return [{"name": MODEL_VOLUME, "persistentVolumeClaim": claim}]
    if source.scheme == "oci":
        image = {"reference": source.rest, "pullPolicy": "IfNotPresent"}
        return [{"name": MODEL_VOLUME, "image": image}]
    match cache_type(ctx):
        case "PVC":
            claim = {"claimName": claim_name(ctx)}
            return [{"name": WEIGHTS_VOLUME, "persistentVolumeClaim": claim}]
        case "HostPath":
            folder = {"path": cache.host_path, "type": "DirectoryOrCreate"}
            return [{"name": WEIGHTS_VOLUME, "hostPath": folder}]
        case "Ephemeral":
            limit = {} if cache.size is None else {"sizeLimit": str(cache.size)}
            return [{"name": WEIGHTS_VOLUME, "emptyDir": limit}]
    return []


def weights_mounts(ctx: Context, *, is_writable: bool) -> list[Json]:
    """Return the mounts that belong to `weights_volumes`."""
    if ctx.source.scheme in ("pvc", "oci"):
        return [{"name": MODEL_VOLUME, "mountPath": MODEL_FOLDER, "readOnly": True}]
    if cache_type(ctx) not in ("PVC", "HostPath", "Ephemeral"):
        return []
    mount: Json = {"name": WEIGHTS_VOLUME, "mountPath": WEIGHTS_FOLDER}
    return [mount if is_writable else mount | {"readOnly": True}]


def weights_env(ctx: Context) -> list[Json]:
    """Return the variable that says where downloads are: the mount, whatever the image says."""
    return [{"name": "HF_HOME", "value": WEIGHTS_FOLDER}] if ctx.source.scheme == "hf" else []


def is_fetched_before(ctx: Context) -> bool:
    """Tell whether engines find the weights complete, and need neither the hub nor a token."""
    return prefetch(ctx) != "None"


def init_containers(ctx: Context) -> list[Json]:
    """Return the container that fetches weights before the engine starts, if there is one."""
    return [_fetch_container(ctx)] if prefetch(ctx) == "InitContainer" else []


def weights_objects(ctx: Context) -> list[Manifest]:
    """Return the claim and the job."""
    objects = []
    if cache_type(ctx) == "PVC" and ctx.spec.cache.existing_claim is None:
        objects.append(_claim(ctx))
    if prefetch(ctx) == "Job":
        job = _job(ctx)
        live = ctx.live("batch/v1", "Job", job_name(ctx))
        if live is None or _template_hash(live) == _template_hash(job):
            objects.append(job)
    return objects


def kept_jobs(ctx: Context) -> set[ObjectKey]:
    """Return the job that stays as it is although it would be made otherwise today.

    A job cannot be changed. One that is done has done what it was for; one that is not is deleted,
    as a leftover, and made again: what it waits for may be what was corrected.
    """
    live = ctx.live("batch/v1", "Job", job_name(ctx))
    if prefetch(ctx) != "Job" or live is None:
        return set()
    conditions = (live.get("status") or {}).get("conditions") or ()
    is_done = any(c.get("type") == "Complete" and c.get("status") == "True" for c in conditions)
    return {ctx.key("batch/v1", "Job", job_name(ctx))} if is_done else set()


def _claim(ctx: Context) -> Manifest:
    cache = ctx.spec.cache
    spec: Json = {
        "accessModes": list(cache.access_modes or ("ReadWriteMany",)),
        "resources": {"requests": {"storage": str(cache.size)}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    is_owned = cache.retain == "Delete"
    return ctx.child(
        "v1", "PersistentVolumeClaim", claim_name(ctx), WEIGHTS, is_owned=is_owned, spec=spec
    )


def _job(ctx: Context) -> Manifest:
    """The engine's own placement: a claim's first consumer decides in which zone its disk is."""
    pod: Json = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [_fetch_container(ctx)],
        "volumes": [*weights_volumes(ctx), *scratch_volumes()],
        **placement_fields(ctx),
        **image_fields(ctx),
    }
    pod.pop("topologySpreadConstraints", None)
    template = {"metadata": {"labels": ctx.labels(WEIGHTS)}, "spec": pod}
    return ctx.child(
        "batch/v1",
        "Job",
        job_name(ctx),
        WEIGHTS,
        annotations={TEMPLATE_HASH_ANNOTATION: hash_of(template)},
        spec={"backoffLimit": JOB_BACKOFF_LIMIT, "template": template},
    )


def _fetch_container(ctx: Context) -> Json:
    revision = ctx.spec.model.revision
    flags = [ctx.source.rest, "--report=/dev/termination-log"]
    if revision:
        flags.append(f"--revision={revision}")
    container: Json = {
        "name": "fetch",
        "image": ctx.spec.engine.image or ctx.settings.engine_image,
        "imagePullPolicy": ctx.spec.engine.image_pull_policy or ctx.settings.image_pull_policy,
        "command": ["quire", "fetch"],
        "args": flags,
        "env": [*weights_env(ctx), *token_env(ctx), *_extra_env(ctx)],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}},
        "securityContext": container_security(is_read_only=True),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},
            *weights_mounts(ctx, is_writable=True),
        ],
    }
    return {name: value for name, value in container.items() if value not in ([], None)}


def _template_hash(job: Manifest) -> str | None:
    annotations = job["metadata"].get("annotations") or {}
    value: str | None = annotations.get(TEMPLATE_HASH_ANNOTATION)
    return value


def _extra_env(ctx: Context) -> list[Json]:
    """Return the engine's variables that say how to reach the hub: mirrors and proxies."""
    return [
        {"name": entry.name, "value": entry.value}
        for entry in ctx.spec.engine.env
        if entry.value is not None
        and (entry.name.startswith("HF_") or entry.name.upper().endswith("_PROXY"))
    ]
