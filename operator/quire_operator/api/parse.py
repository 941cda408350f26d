"""An LLMDeployment out of the API server's JSON, or what is wrong with it.

The CRD's rules refuse most of this when it is written. They are here again only as far as a plan
could not be made otherwise: for objects that are older than a rule, or than the CRD.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api.decode import MisfitError, decode
from quire_operator.api.source import UNSUPPORTED_SCHEMES, Source
from quire_operator.api.spec import DeploymentSpec

MAX_NAME_LENGTH = 45
MAX_REPLICAS = 1000
OWNED_ENGINE_FLAGS = frozenset(
    [
        "--model",
        "--served-model-name",
        "--revision",
        "--download-dir",
        "--hf-token",
        "--dtype",
        "--max-model-len",
        "--tensor-parallel-size",
        "-tp",
        "--pipeline-parallel-size",
        "-pp",
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
        "--gpu-memory-utilization",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--block-size",
        "--enable-prefix-caching",
        "--no-enable-prefix-caching",
        "--kv-cache-dtype",
        "--device",
        "--host",
        "--port",
        "--uds",
        "--metrics-port",
        "--metrics-compat",
        "--shutdown-timeout",
    ]
)
"""Flags of the engine that fields of the spec set."""
OWNED_ROUTER_FLAGS = frozenset(
    [
        "--replicas",
        "--routing-policy",
        "--host",
        "--port",
        "--api-key",
        "--api-key-file",
        "--service-account-dir",
        "--shutdown-delay",
        "--shutdown-timeout",
    ]
)
"""Flags of the router that fields of the spec set."""
_COUNT = re.compile(r"[0-9]{1,9}|[0-9]{1,3}%")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a spec is not accepted."""

    reason: str
    """A reason of the condition Accepted."""
    message: str


def parse_spec(deployment: Mapping[str, Any]) -> DeploymentSpec | Problem:
    """Return the spec of an LLMDeployment with all defaults, or the first problem with it."""
    name = str(deployment.get("metadata", {}).get("name", ""))
    if len(name) > MAX_NAME_LENGTH:
        return Problem(
            "NameTooLong",
            f"metadata.name has {len(name)} characters, {MAX_NAME_LENGTH} are possible: "
            "create it again under a shorter name",
        )
    if not _NAME.fullmatch(name):
        return Problem(
            "Invalid",
            f"metadata.name {name!r} must be lower-case letters, digits and '-', beginning with a "
            "letter: create it again under such a name",
        )
    try:
        spec = decode(DeploymentSpec, deployment.get("spec"), "spec")
    except MisfitError as error:
        return Problem("Invalid", f"{error}; correct it with `kubectl edit llmd {name}`")
    for check in _CHECKS:
        if problem := check(spec):
            return problem
    return spec


def _check_source(spec: DeploymentSpec) -> Problem | None:
    source = Source.parse(spec.model.source)
    if source.scheme in UNSUPPORTED_SCHEMES:
        return Problem(
            "UnsupportedSource",
            f"spec.model.source {spec.model.source}: {source.scheme}:// is not supported yet; copy "
            "the model to a claim and use pvc://CLAIM/PATH, or take it from hf://",
        )
    if not source.rest or source.scheme not in ("hf", "pvc", "oci", "file", "demo"):
        return Problem(
            "UnsupportedSource",
            f"spec.model.source {spec.model.source!r} is none of hf://OWNER/REPOSITORY, "
            "pvc://CLAIM/PATH, oci://IMAGE, file:///PATH and demo://",
        )
    return None


def _check_parallelism(spec: DeploymentSpec) -> Problem | None:
    parallelism = spec.parallelism
    sizes = (parallelism.tensor, parallelism.pipeline, parallelism.nodes_per_replica)
    if min(sizes) < 1:
        return Problem("Invalid", f"spec.parallelism must be 1 or more everywhere, not {sizes}")
    if parallelism.tensor * parallelism.pipeline % parallelism.nodes_per_replica:
        return Problem(
            "Invalid",
            f"spec.parallelism: tensor * pipeline is {parallelism.tensor * parallelism.pipeline}, "
            f"no multiple of nodesPerReplica {parallelism.nodes_per_replica}",
        )
    return None


def _check_cache(spec: DeploymentSpec) -> Problem | None:
    cache = spec.cache
    is_oci = spec.model.source.startswith("oci://")
    if cache.type is not None and is_oci != (cache.type == "Image"):
        return Problem("Invalid", "spec.cache.type Image and an oci:// source belong together")
    if cache.type == "PVC" and (cache.size is None) == (cache.existing_claim is None):
        return Problem(
            "Invalid", "spec.cache of type PVC needs size or existingClaim, and not both"
        )
    if cache.type == "HostPath" and not cache.host_path:
        return Problem(
            "Invalid", "spec.cache of type HostPath needs hostPath, a folder on the nodes"
        )
    if cache.prefetch == "Job" and cache.type != "PVC":
        return Problem("Invalid", "spec.cache.prefetch Job needs cache.type PVC; use InitContainer")
    return None


def _check_autoscaling(spec: DeploymentSpec) -> Problem | None:
    scaling = spec.autoscaling
    if scaling is None:
        return None
    if scaling.min_replicas > scaling.max_replicas:
        return Problem(
            "Invalid",
            f"spec.autoscaling.minReplicas {scaling.min_replicas} is larger than maxReplicas "
            f"{scaling.max_replicas}",
        )
    if not scaling.metrics:
        return Problem("Invalid", "spec.autoscaling.metrics needs at least one metric")
    return None


def _check_counts(spec: DeploymentSpec) -> Problem | None:
    if not 0 <= spec.replicas <= MAX_REPLICAS:
        limits = f"between 0 and {MAX_REPLICAS}"
        return Problem("Invalid", f"spec.replicas must be {limits}, not {spec.replicas}")
    counts = {
        "spec.rollout.maxUnavailable": spec.rollout.max_unavailable,
        "spec.disruption.maxUnavailable": spec.disruption.max_unavailable,
    }
    for field, value in counts.items():
        if not _COUNT.fullmatch(str(value)):
            return Problem("Invalid", f"{field} must be a number or a percentage, not {value!r}")
    return None


def _check_args(spec: DeploymentSpec) -> Problem | None:
    given = (
        ("spec.engine.args", spec.engine.args, OWNED_ENGINE_FLAGS),
        ("spec.router.args", spec.router.args, OWNED_ROUTER_FLAGS),
    )
    for field, arguments, owned in given:
        repeated = [name for text in arguments if (name := text.partition("=")[0]) in owned]
        if repeated:
            return Problem(
                "ArgsConflict",
                f"{field} repeats {', '.join(repeated)}, which fields of the spec set: use those",
            )
    return None


def _check_pod_template(spec: DeploymentSpec) -> Problem | None:
    """The server takes anything there; we lay it over a template and must know its shape."""
    template = spec.pod_template
    if template is None:
        return None
    for name in ("labels", "annotations"):
        given = (template.metadata or {}).get(name, {})
        if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
            return Problem("Invalid", f"spec.podTemplate.metadata.{name} must be a map of texts")
    for name in ("containers", "initContainers", "volumes"):
        given = (template.spec or {}).get(name, [])
        if not isinstance(given, list) or not all(isinstance(item, Mapping) for item in given):
            return Problem("Invalid", f"spec.podTemplate.spec.{name} must be a list of objects")
        if not all(isinstance(item.get("name"), str) for item in given):
            return Problem("Invalid", f"spec.podTemplate.spec.{name}: each needs a name")
    return None


_CHECKS: tuple[Callable[[DeploymentSpec], Problem | None], ...] = (
    _check_source,
    _check_parallelism,
    _check_cache,
    _check_autoscaling,
    _check_counts,
    _check_args,
    _check_pod_template,
)
