"""The cluster as last seen, indexed by deployment.

Two sources feed it: watches, and the answers to the operator's own writes. The newer resource
version of an object wins, so a watch that lags never undoes an answer. An answer that comes after
its watch has passed it is dropped: the watch may have told of the object's end already, and nothing
would ever take the ghost away.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from quire_operator.capacity import Fleet
from quire_operator.plan import DEPLOYMENT_LABEL, Manifest, ObjectKey
from quire_operator.runtime.metrics import DeploymentKey
from quire_operator.runtime.resources import DEPLOYMENTS, NODES, PODS, Resource, revision


class Change(Enum):
    """What happened to an object, as far as a reconcile cares."""

    ADDED = "added"
    SPEC = "spec"
    STATUS = "status"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something changed; `key` is None for a node, which concerns every deployment."""

    resource: Resource
    change: Change
    key: DeploymentKey | None
    is_own: bool = False
    """Whether the operator's own write did it."""


_Shelf = dict[ObjectKey, Manifest]


class Store:
    """What is known of the cluster. Every change is told to `notify`."""

    def __init__(self, notify: Callable[[Notice], None]) -> None:
        self._notify = notify
        self._shelves: defaultdict[Resource, _Shelf] = defaultdict(dict)
        self._children: defaultdict[DeploymentKey, _Shelf] = defaultdict(dict)
        self._pods: defaultdict[DeploymentKey, _Shelf] = defaultdict(dict)
        self._deployments: dict[DeploymentKey, Manifest] = {}
        self._nodes: Fleet | None = None
        self._seen: defaultdict[Resource, int] = defaultdict(lambda: -1)

    @property
    def deployments(self) -> Mapping[DeploymentKey, Manifest]:
        """All LLMDeployments."""
        return self._deployments

    @property
    def nodes(self) -> Fleet:
        """All nodes, sorted by name: the same fleet until one of them changes."""
        if self._nodes is None:
            shelf = self._shelves[NODES]
            self._nodes = Fleet(shelf[key] for key in sorted(shelf))
        return self._nodes

    def children(self, key: DeploymentKey) -> Mapping[ObjectKey, Manifest]:
        """Return the objects that carry a deployment's label, pods excepted."""
        return dict(self._children.get(key, {}))

    def pods(self, key: DeploymentKey) -> list[Manifest]:
        """Return the pods that carry a deployment's label, sorted by name."""
        shelf = self._pods.get(key, {})
        return [shelf[pod] for pod in sorted(shelf)]

    def sizes(self) -> dict[str, int]:
        """Return the number of objects per kind."""
        return {resource.kind: len(shelf) for resource, shelf in self._shelves.items()}

    def put(self, resource: Resource, manifest: Manifest) -> None:
        """Take in an object that a watch or a list told of."""
        self._seen[resource] = max(self._seen[resource], revision(manifest))
        self._put(resource, trim(resource, manifest), is_own=False)

    def put_answer(self, resource: Resource, manifest: Manifest) -> None:
        """Take in the object that the server answered a write with."""
        if revision(manifest) > self._seen[resource]:
            self._put(resource, trim(resource, manifest), is_own=True)

    def remove(self, resource: Resource, manifest: Manifest) -> None:
        """Take out an object that a watch told is deleted."""
        self._seen[resource] = max(self._seen[resource], revision(manifest))
        self._remove(resource, key_in(resource, manifest))

    def discard(self, resource: Resource, key: ObjectKey, uid: str) -> None:
        """Take out an object that the server answered no longer exists."""
        known = self._shelves[resource].get(key)
        if known is not None and known["metadata"].get("uid") == uid:
            self._remove(resource, key)

    def bookmark(self, resource: Resource, resource_version: int) -> None:
        """Note that a watch has told everything up to this version."""
        self._seen[resource] = max(self._seen[resource], resource_version)

    def replace(
        self,
        resource: Resource,
        namespace: str,
        manifests: Iterable[Manifest],
        resource_version: int,
    ) -> None:
        """Take in a complete list: whatever is not in it, and not newer than it, is gone."""
        listed = set()
        for manifest in manifests:
            listed.add(key_in(resource, manifest))
            self._put(resource, trim(resource, manifest), is_own=False)
        self._seen[resource] = max(self._seen[resource], resource_version)
        gone = [
            key
            for key, known in self._shelves[resource].items()
            if key not in listed
            and namespace in ("", key.namespace)
            and revision(known) <= resource_version
        ]
        for key in gone:
            self._remove(resource, key)

    def clear(self, resource: Resource) -> None:
        """Forget a kind that the server no longer has."""
        for key in list(self._shelves[resource]):
            self._remove(resource, key)

    def _put(self, resource: Resource, manifest: Manifest, *, is_own: bool) -> None:
        key = key_in(resource, manifest)
        shelf = self._shelves[resource]
        known = shelf.get(key)
        if known is not None and not _is_newer(manifest, known):
            return
        shelf[key] = manifest
        owner = owner_of(resource, manifest)
        if known is not None and owner_of(resource, known) != owner:
            self._unlink(resource, key, known)
        self._link(resource, key, owner, manifest)
        change = compare(resource, known, manifest)
        if change is not None:
            self._tell(Notice(resource, change, owner, is_own))

    def _remove(self, resource: Resource, key: ObjectKey) -> None:
        known = self._shelves[resource].pop(key, None)
        if known is None:
            return
        self._unlink(resource, key, known)
        self._tell(Notice(resource, Change.REMOVED, owner_of(resource, known)))

    def _tell(self, notice: Notice) -> None:
        if notice.resource is NODES:
            self._nodes = None
        if notice.key is not None or notice.resource is NODES:
            self._notify(notice)

    def _link(
        self, resource: Resource, key: ObjectKey, owner: DeploymentKey | None, manifest: Manifest
    ) -> None:
        if owner is None:
            return
        if resource is DEPLOYMENTS:
            self._deployments[owner] = manifest
        elif resource is PODS:
            self._pods[owner][key] = manifest
        else:
            self._children[owner][key] = manifest

    def _unlink(self, resource: Resource, key: ObjectKey, known: Manifest) -> None:
        owner = owner_of(resource, known)
        if owner is None:
            return
        if resource is DEPLOYMENTS:
            self._deployments.pop(owner, None)
        else:
            index = self._pods if resource is PODS else self._children
            index[owner].pop(key, None)
            if not index[owner]:
                del index[owner]


def key_in(resource: Resource, manifest: Manifest) -> ObjectKey:
    """Return the key of an object; list items need not name their kind."""
    metadata = manifest["metadata"]
    return ObjectKey(
        resource.api_version, resource.kind, metadata.get("namespace", ""), metadata["name"]
    )


def owner_of(resource: Resource, manifest: Manifest) -> DeploymentKey | None:
    """Return the deployment that an object belongs to; None for nodes and strangers."""
    metadata = manifest["metadata"]
    if resource is DEPLOYMENTS:
        return metadata["namespace"], metadata["name"]
    name = (metadata.get("labels") or {}).get(DEPLOYMENT_LABEL)
    return (metadata["namespace"], name) if name and "namespace" in metadata else None


def trim(resource: Resource, manifest: Manifest) -> Manifest:
    """Drop what no plan reads, in place: who wrote which field, and a node's list of images."""
    manifest.setdefault("apiVersion", resource.api_version)
    manifest.setdefault("kind", resource.kind)
    manifest["metadata"].pop("managedFields", None)
    if resource is NODES:
        status = manifest.get("status", {})
        kept = ("allocatable", "capacity", "conditions", "nodeInfo")
        manifest["status"] = {name: status[name] for name in kept if name in status}
        for condition in manifest["status"].get("conditions", ()):
            condition.pop("lastHeartbeatTime", None)
    return manifest


def compare(resource: Resource, before: Manifest | None, after: Manifest) -> Change | None:
    """Tell what changed between two versions of an object; None if nothing that matters."""
    if before is None or before["metadata"].get("uid") != after["metadata"].get("uid"):
        return Change.ADDED
    if resource is NODES:
        return Change.SPEC if _node_facts(before) != _node_facts(after) else None
    if _intent_of(before) != _intent_of(after):
        return Change.SPEC
    return Change.STATUS if before.get("status") != after.get("status") else None


def _node_facts(node: Manifest) -> tuple[object, ...]:
    status = node.get("status", {})
    conditions = [(item["type"], item["status"]) for item in status.get("conditions", ())]
    metadata = node["metadata"]
    return metadata.get("labels"), node.get("spec"), status.get("allocatable"), conditions


def _intent_of(manifest: Manifest) -> tuple[object, ...]:
    metadata = manifest["metadata"]
    generation = metadata.get("generation")
    # Kinds without a generation keep their content in fields of any name.
    content = generation or {
        name: value for name, value in manifest.items() if name not in ("metadata", "status")
    }
    return (
        content,
        metadata.get("labels"),
        metadata.get("annotations"),
        metadata.get("ownerReferences"),
        metadata.get("deletionTimestamp"),
    )


def _is_newer(manifest: Manifest, known: Manifest) -> bool:
    new, old = revision(manifest), revision(known)
    return new > old or -1 in (new, old)
