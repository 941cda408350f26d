"""The Secrets and claims that a spec names and that somebody else must create."""

from quire_operator.api import DeploymentSpec, Problem, Source, parse_spec
from quire_operator.plan.contract import Manifest, ObjectKey


def referenced_objects(deployment: Manifest) -> tuple[ObjectKey, ...]:
    """List the Secrets and claims that a deployment names. Empty for a spec that cannot be read."""
    spec = parse_spec(deployment)
    if isinstance(spec, Problem):
        return ()
    namespace = deployment["metadata"].get("namespace", "")
    return (
        *(ObjectKey("v1", "Secret", namespace, name) for name in secret_names(spec)),
        *(ObjectKey("v1", "PersistentVolumeClaim", namespace, name) for name in claim_names(spec)),
    )


def secret_names(spec: DeploymentSpec) -> tuple[str, ...]:
    """Return the names of Secrets that pods need to start, without those of image pulls."""
    references = (spec.model.token_secret_ref, spec.router.api_keys_secret_ref)
    names = (reference.name for reference in references if reference)
    return tuple(dict.fromkeys(names))


def claim_names(spec: DeploymentSpec) -> tuple[str, ...]:
    """Return the names of claims that pods mount and that the operator does not make."""
    source = Source.parse(spec.model.source)
    names = [source.claim] if source.scheme == "pvc" else []
    if spec.cache.type == "PVC" and spec.cache.existing_claim:
        names.append(spec.cache.existing_claim)
    return tuple(dict.fromkeys(names))
