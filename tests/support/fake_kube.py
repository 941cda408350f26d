"""A small API server in memory, behind the client's own methods: for laws about many failures.

Keeps objects by path with growing versions, uids and generations, records writes, collects what
belongs to deleted owners, feeds watches, and fails as told. The real server has the last word, in
tests/cluster.
"""

import asyncio
import contextlib
import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

from quire_operator.errors import ConflictError, GoneError, KubeError, NotFoundError
from quire_operator.plan import Manifest
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.resources import Resource

_Key = tuple[Resource, str, str]


class FakeKube:
    """What `KubeApi` offers, on a dictionary."""

    def __init__(self) -> None:
        self.metrics = OperatorMetrics()
        self.objects: dict[_Key, Manifest] = {}
        self.writes: list[str] = []
        self.fail: Callable[[str, Resource, str], KubeError | None] = lambda *_: None
        """Asked before every request: (method, resource, name) -> the error to raise, or None."""
        self.on_written: Callable[[], None] = lambda: None
        """Called when a write was carried out, before it is answered."""
        self.version = 100
        self.num_lists = 0
        self.apis: set[tuple[str, str]] = set()
        """(apiVersion, kind) of what discovery finds."""
        self.watches: defaultdict[Resource, list[asyncio.Queue[list[Manifest] | None]]] = (
            defaultdict(list)
        )

    def seed(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Put an object in, as somebody else would."""
        return copy.deepcopy(self._write(resource, copy.deepcopy(manifest)))

    def live(self, resource: Resource, name: str, namespace: str = "default") -> Manifest:
        return copy.deepcopy(self.objects[resource, namespace, name])

    def tell(self, resource: Resource, *events: Manifest | None) -> None:
        """Send events to every watch; None ends them."""
        for queue in self.watches[resource]:
            for event in events:
                queue.put_nowait(None if event is None else [event])

    async def raw(self, path: str, *, accept: str = "") -> Manifest:
        if path == "/version":
            return {"major": "1", "minor": "34+"}
        groups: defaultdict[str, list[Manifest]] = defaultdict(list)
        for api_version, kind in self.apis:
            groups[api_version].append(
                {"resource": f"{kind.lower()}s", "responseKind": {"kind": kind}}
            )
        items = [
            {
                "metadata": {"name": api_version.split("/")[0]},
                "versions": [{"version": api_version.split("/")[1], "resources": resources}],
            }
            for api_version, resources in groups.items()
        ]
        return {"kind": "APIGroupDiscoveryList", "items": items}

    async def get(
        self, resource: Resource, namespace: str, name: str, *, accept: str = ""
    ) -> Manifest:
        await self._request("GET", resource, name)
        return copy.deepcopy(self._find(resource, namespace, name))

    async def list_page(self, resource: Resource, namespace: str = "", **_: Any) -> Manifest:
        await self._request("LIST", resource, "")
        self.num_lists += 1
        items = [
            copy.deepcopy(manifest)
            for (kind, where, _), manifest in self.objects.items()
            if kind == resource and namespace in ("", where)
        ]
        return {"items": items, "metadata": {"resourceVersion": str(self.version)}}

    async def apply(self, resource: Resource, manifest: Manifest) -> Manifest:
        await self._request("PATCH", resource, manifest["metadata"]["name"])
        return copy.deepcopy(self._write(resource, copy.deepcopy(manifest)))

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: Manifest
    ) -> Manifest:
        await self._request("STATUS", resource, name)
        known = self._find(resource, namespace, name)
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted not in (None, known["metadata"]["resourceVersion"]):
            raise ConflictError("the object has been modified", status=409)
        status = {
            key: value
            for key, value in ((known.get("status") or {}) | patch["status"]).items()
            if value is not None
        }
        return copy.deepcopy(self._write(resource, known | {"status": status}))

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        await self._request("POST", resource, metadata["name"])
        if (resource, metadata.get("namespace", ""), metadata["name"]) in self.objects:
            raise ConflictError("already exists", status=409)
        return copy.deepcopy(self._write(resource, copy.deepcopy(manifest)))

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        await self._request("PUT", resource, metadata["name"])
        known = self._find(resource, metadata.get("namespace", ""), metadata["name"])
        if known["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ConflictError("the object has been modified", status=409)
        return copy.deepcopy(self._write(resource, copy.deepcopy(manifest)))

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Manifest
    ) -> Manifest:
        await self._request("MERGE", resource, name)
        known = self._find(resource, namespace, name)
        return copy.deepcopy(self._write(resource, known | patch))

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str
    ) -> Manifest | None:
        await self._request("DELETE", resource, name)
        known = self._find(resource, namespace, name)
        if known["metadata"]["uid"] != uid:
            raise ConflictError("the uid in the precondition does not match", status=409)
        self.remove(resource, namespace, name)
        return None

    @contextlib.asynccontextmanager
    async def watch(
        self, resource: Resource, namespace: str, **_: Any
    ) -> AsyncIterator[AsyncIterator[list[Manifest]]]:
        await self._request("WATCH", resource, "")
        queue: asyncio.Queue[list[Manifest] | None] = asyncio.Queue()
        self.watches[resource].append(queue)

        async def batches() -> AsyncIterator[list[Manifest]]:
            while (batch := await queue.get()) is not None:
                yield batch

        try:
            yield batches()
        finally:
            self.watches[resource].remove(queue)

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete an object and what it owns, as the garbage collector does."""
        gone = self.objects.pop((resource, namespace, name))
        uid = gone["metadata"]["uid"]
        for key, manifest in list(self.objects.items()):
            owners = manifest["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == uid for owner in owners):
                self.objects.pop(key, None)
        self.on_written()

    async def _request(self, method: str, resource: Resource, name: str) -> None:
        await asyncio.sleep(0)
        if method not in ("GET", "LIST", "WATCH"):
            self.writes.append(f"{method} {resource.kind}/{name}")
        error = self.fail(method, resource, name)
        if error is not None:
            raise error

    def _find(self, resource: Resource, namespace: str, name: str) -> Manifest:
        try:
            return self.objects[resource, namespace, name]
        except KeyError:
            raise NotFoundError(f"{resource.plural} {name!r} not found", status=404) from None

    def _write(self, resource: Resource, manifest: Manifest) -> Manifest:
        metadata = dict(manifest["metadata"])
        key = resource, metadata.get("namespace", ""), metadata["name"]
        known = self.objects.get(key)
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        if known is None:
            metadata |= {"uid": f"uid-{self.version}", "generation": 1}
        else:
            generation = known["metadata"]["generation"]
            changed = known.get("spec") != manifest.get("spec")
            metadata |= {
                "uid": known["metadata"]["uid"],
                "generation": generation + 1 if changed else generation,
            }
            manifest = {"status": known.get("status", {})} | manifest
        self.objects[key] = manifest | {"metadata": metadata}
        self.on_written()
        return self.objects[key]


def gone() -> KubeError:
    return GoneError("too old resource version", status=410)
