"""Parts that several pods share."""

from typing import Any

from quire_operator.plan.context import Context

USER_ID = 65532
"""The user of our images."""
CACHE_FOLDER = "/cache"
"""Everything that the engine image writes goes below it."""

Json = dict[str, Any]


def pod_security() -> Json:
    """Return a pod's security context: what the restricted Pod Security Standard asks for."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # A claim with a large model has many gigabytes to walk over at every start otherwise.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, is_read_only: bool) -> Json:
    """Return a container's security context, as restricted as the pod's."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": is_read_only,
    }


def scratch_volumes() -> list[Json]:
    """Return what may be written: compiled kernels, and temporary files."""
    return [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]


def image_fields(ctx: Context) -> Json:
    """Return the pod's imagePullSecrets: the deployment's and the operator's."""
    own = [reference.name for reference in ctx.spec.engine.image_pull_secrets]
    names = dict.fromkeys([*own, *ctx.settings.image_pull_secrets])
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def token_env(ctx: Context) -> list[Json]:
    """Return the variable with the hub's token."""
    reference = ctx.spec.model.token_secret_ref
    if reference is None:
        return []
    source = {"secretKeyRef": {"name": reference.name, "key": reference.key}}
    return [{"name": "HF_TOKEN", "valueFrom": source}]
