"""Names, labels and annotations that the operator and its children agree on."""

from quire_operator.plan.contract import Manifest, ObjectKey

FIELD_MANAGER = "quire-operator"
"""Field manager of every write."""
MANAGED_BY = "quire-operator"
"""Value of app.kubernetes.io/managed-by on every child: the runtime watches nothing else."""
DEPLOYMENT_LABEL = "quire.dev/deployment"
"""Label of every child and pod: the name of its deployment."""
SPEC_HASH_ANNOTATION = "quire.dev/spec-hash"
"""Hash of the intent that was applied last."""


def referenced_objects(deployment: Manifest) -> tuple[ObjectKey, ...]:
    """List the Secrets and claims that the spec names and that somebody else must create."""
    return ()
