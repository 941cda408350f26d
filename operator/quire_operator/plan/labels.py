"""Names, labels and annotations that the operator and its children agree on."""

FIELD_MANAGER = "quire-operator"
"""Field manager of every write."""
MANAGED_BY = "quire-operator"
"""Value of app.kubernetes.io/managed-by on every child: the runtime watches nothing else."""

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
DEPLOYMENT_LABEL = "quire.dev/deployment"
"""Label of every child and pod: the name of its deployment."""
REPLICA_LABEL = "quire.dev/replica"
"""Label of the pods of one group: the index of the replica that they are."""
LEADER_LABEL = "apps.kubernetes.io/pod-index"
"""Kubernetes' own label; 0 on the pod of a group that serves."""
REVISION_LABEL = "controller-revision-hash"
"""Kubernetes' own label of a StatefulSet's pods."""

ENGINE = "engine"
ROUTER = "router"
WEIGHTS = "weights"

SPEC_HASH_ANNOTATION = "quire.dev/spec-hash"
"""Hash of the intent that was applied last."""
TEMPLATE_HASH_ANNOTATION = "quire.dev/template-hash"
"""Hash of the pod template, on a StatefulSet or Job: whether its pods are to be replaced."""
GANG_ANNOTATION = "quire.dev/gang"
"""On a group's StatefulSet: the kind of scheduler that its pods were made for."""
PAUSED_ANNOTATION = "quire.dev/paused"
"""On a deployment, "true" stops every write but status."""
MODEL_CONFIG_ANNOTATION = "quire.dev/model-config"
"""On a deployment: the model's config.json, from which its size is computed."""
SKIP_CAPACITY_ANNOTATION = "quire.dev/skip-capacity-check"
"""On a deployment, "true" stops judging whether nodes fit."""


def component_labels(name: str, component: str) -> dict[str, str]:
    """Return the labels of a child."""
    return {
        NAME_LABEL: "quire",
        INSTANCE_LABEL: name,
        COMPONENT_LABEL: component,
        MANAGED_BY_LABEL: MANAGED_BY,
        DEPLOYMENT_LABEL: name,
    }


def selector_labels(name: str, component: str) -> dict[str, str]:
    """Return the fewest labels that tell the pods of a component: selectors cannot be changed."""
    return {DEPLOYMENT_LABEL: name, COMPONENT_LABEL: component}


def selector_text(name: str, component: str) -> str:
    """Return the same as text, as the scale subresource wants it."""
    return ",".join(f"{key}={value}" for key, value in selector_labels(name, component).items())
