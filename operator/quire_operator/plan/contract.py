"""What goes into a plan and what comes out.

The runtime gathers an `Observed`, calls `plan()`, and carries the `Plan` out: objects in order by
server-side apply, then deletions, then one write of status if it differs, and its news.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from quire_operator.capacity import Fleet

Manifest = dict[str, Any]
"""A Kubernetes object as plain JSON."""


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Where an object lives. `namespace` is empty for cluster-scoped kinds."""

    api_version: str
    kind: str
    namespace: str
    name: str


def object_key(manifest: Manifest) -> ObjectKey:
    """Return the key of a manifest that has apiVersion, kind and metadata.name."""
    metadata = manifest["metadata"]
    return ObjectKey(
        manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The cluster as the runtime sees it at one moment."""

    children: Mapping[ObjectKey, Manifest] = field(default_factory=dict)
    """Live objects that carry the label `quire.dev/deployment: <name>`, pods excepted."""
    pods: Sequence[Manifest] = ()
    """Pods with that label: engines, routers and the weights job's."""
    nodes: Fleet = field(default_factory=Fleet)
    """Nodes of the cluster. Empty where the operator may not list them: then nothing is judged."""
    apis: frozenset[tuple[str, str]] = frozenset()
    """(apiVersion, kind) of every optional API that the server has, as `("keda.sh/v1alpha1",
    "ScaledObject")`. Kinds that every supported Kubernetes has need not be here."""
    now: datetime
    """The only clock. Aware, UTC."""
    referenced: Mapping[ObjectKey, bool] = field(default_factory=dict)
    """Whether the Secrets and claims that the spec names exist; `referenced_objects()` lists them.
    A key that is missing was not looked up and counts as present."""
    server_version: tuple[int, int] = (1, 30)
    """Version of the API server, for features that discovery does not show."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """One object to delete, in the background, and only while its uid is still this one.

    The uid is the precondition of the delete call: a pod that was replaced since the snapshot was
    taken has another one and is left alone. A 404 or 409 answer means that it is already done.
    """

    key: ObjectKey
    uid: str
    reason: str = ""
    """For the log and the event: `pruned`, `new revision`, `group restart`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One Event on the deployment. Only for what changed: a steady state has none."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do: everything, in this order. Carrying it out twice changes nothing."""

    objects: tuple[Manifest, ...] = ()
    """Complete server-side-apply intents, in apply order, with ownerReferences, labels and the
    annotation `quire.dev/spec-hash`: the hash of the intent without that annotation. An intent
    whose live object carries the same hash need not be applied again, drift apart."""
    deletions: tuple[Deletion, ...] = ()
    """Children to prune and pods to replace; after the objects were applied without an error."""
    status: Manifest
    """The whole status. Equal to the live one in a steady state: then it need not be written."""
    events: tuple[Event, ...] = ()
    """What is created, changed and deleted."""
    news: tuple[Event, ...] = ()
    """What the status tells that the live one does not: to post when it is written, not before."""
    requeue_after_s: float | None = None
    """When to look again if nothing happens, for what only time changes; None: no need."""
